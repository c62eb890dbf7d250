// The pool of Listmonk 3.0 to 4.1: STARTTLS is what a TLSConfig without SSL means.
package main

import (
	"github.com/knadh/smtppool"
	"interop/client"
)

func main() { client.Main(open) }

func open(s client.Settings) (client.Send, error) {
	pool, err := smtppool.New(smtppool.Opt{
		Host:              s.Host,
		Port:              s.Port,
		MaxConns:          s.Conns,
		MaxMessageRetries: s.Retries,
		IdleTimeout:       s.IdleTimeout(),
		PoolWaitTimeout:   s.WaitTimeout(),
		Auth:              s.SMTPAuth(&smtppool.LoginAuth{Username: s.Username, Password: s.Password}),
		TLSConfig:         s.TLSConfig(),
	})
	return func(m client.Mail) error {
		return pool.Send(smtppool.Email{
			From:    m.From,
			To:      []string{m.To},
			Subject: m.Subject,
			HTML:    m.HTML,
			Headers: m.Headers,
		})
	}, err
}
