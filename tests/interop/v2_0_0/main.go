// The pool of Listmonk 5.0.0 to 5.0.2.
package main

import (
	"github.com/knadh/smtppool/v2"
	"interop/client"
)

func main() { client.Main(open) }

func open(s client.Settings) (client.Send, error) {
	ssl := smtppool.SSLNone
	if s.TLS == "STARTTLS" {
		ssl = smtppool.SSLSTARTTLS
	}
	pool, err := smtppool.New(smtppool.Opt{
		Host:              s.Host,
		Port:              s.Port,
		MaxConns:          s.Conns,
		MaxMessageRetries: s.Retries,
		IdleTimeout:       s.IdleTimeout(),
		PoolWaitTimeout:   s.WaitTimeout(),
		Auth:              s.SMTPAuth(&smtppool.LoginAuth{Username: s.Username, Password: s.Password}),
		TLSConfig:         s.TLSConfig(),
		SSL:               ssl,
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
