// Package client sends mail the way Listmonk's campaign workers do: so many workers, each
// with one message in hand after another, all on one pool of connections.
//
// What Listmonk does was read in its source (internal/messenger/email, internal/manager).
// The pool is the caller's, since each major version of smtppool is a package of its own.
//
// The first line of standard input is the Settings; each further line is a command, and
// each line of standard output a report, all in JSON. A command to send and its end:
//
//	{"send": 2}
//	{"id": "<a.0@lists.example.com>", "error": "", "ms": 3}
//	{"id": "<a.1@lists.example.com>", "error": "EOF", "ms": 1}
//	{"idle": true, "commands": 1}
//
// {"send": 1, "pad_bytes": 5000} makes them longer. {"pause": true} lets each worker end what it has in hand and is answered by "idle", too;
// {"pause": false} goes on. At the end of input the program ends once all is sent; like
// Listmonk it says no QUIT.
package client

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/smtp"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"
)

// Settings are an SMTP entry of Listmonk's, and what to send through it.
type Settings struct {
	Host          string `json:"host"`
	Port          int    `json:"port"`
	TLS           string `json:"tls"`  // "none", "STARTTLS"
	Auth          string `json:"auth"` // "none", "plain", "login", "cram"
	Username      string `json:"username"`
	Password      string `json:"password"`
	Conns         int    `json:"conns"`
	Retries       int    `json:"retries"`
	RetryDelayMS  int    `json:"retry_delay_ms"`
	IdleTimeoutMS int    `json:"idle_timeout_ms"`
	WaitTimeoutMS int    `json:"wait_timeout_ms"`

	Workers  int     `json:"workers"`
	RatePerS float64 `json:"rate_per_s"` // of all workers together; 0: as fast as it goes
	Name     string  `json:"name"`       // begins each Message-Id
	Campaign string  `json:"campaign"`
	HTML     string  `json:"html"` // {n} stands for the number of the message
}

// Mail is what Listmonk hands to the pool for one reader.
type Mail struct {
	ID, From, To, Subject string
	HTML                  []byte
	Headers               textproto.MIMEHeader
}

// Send hands one mail over; nil means that Listmonk counts it as sent.
type Send func(Mail) error

// Main reads settings and commands, and returns when all is sent.
func Main(open func(Settings) (Send, error)) {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<20)
	var settings Settings
	if !input.Scan() {
		return
	}
	must(json.Unmarshal(input.Bytes(), &settings))
	send, err := open(settings)
	must(err)

	desk := newDesk(settings.RatePerS)
	for range settings.Workers {
		go work(desk, settings, send)
	}
	for input.Scan() {
		var command command
		must(json.Unmarshal(input.Bytes(), &command))
		desk.obey(command)
	}
	desk.untilSent()
}

func work(desk *desk, settings Settings, send Send) {
	for {
		mail := settings.mail(desk.take())
		begun := time.Now()
		err := send(mail)
		desk.done(mail.ID, err, time.Since(begun))
	}
}

// mail makes the message with number n, with all headers that a campaign's mail has. Like
// most templates it has no line end at its end.
func (s Settings) mail(n, padBytes int) Mail {
	number := strconv.Itoa(n)
	reader := fmt.Sprintf("00000000-0000-4000-8000-%012d", n)
	leave := "<https://lists.example.com/subscription/" + s.Campaign + "/" + reader + ">"
	id := "<" + s.Name + "." + number + "@lists.example.com>"
	headers := textproto.MIMEHeader{}
	headers.Set("Message-Id", id)
	headers.Set("X-Listmonk-Campaign", s.Campaign)
	headers.Set("X-Listmonk-Subscriber", reader)
	headers.Set("List-Unsubscribe", leave)
	headers.Set("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
	return Mail{
		ID:      id,
		From:    "Example Lists <news@lists.example.com>",
		To:      "reader" + number + "@example.net",
		Subject: "Weekly notes — № " + number,
		HTML:    []byte(strings.ReplaceAll(s.HTML, "{n}", number) + strings.Repeat("x", padBytes)),
		Headers: headers,
	}
}

// SMTPAuth is what Listmonk makes of the setting; LOGIN comes from smtppool.
func (s Settings) SMTPAuth(login smtp.Auth) smtp.Auth {
	switch s.Auth {
	case "plain":
		return smtp.PlainAuth("", s.Username, s.Password, s.Host)
	case "cram":
		return smtp.CRAMMD5Auth(s.Username, s.Password)
	case "login":
		return login
	}
	return nil
}

// TLSConfig is nil for a connection in plain text. The name is not verified, as with
// Listmonk's "skip TLS verification".
func (s Settings) TLSConfig() *tls.Config {
	if s.TLS == "none" {
		return nil
	}
	return &tls.Config{InsecureSkipVerify: true}
}

// IdleTimeout is for how long the pool keeps a connection that nobody uses.
func (s Settings) IdleTimeout() time.Duration { return milliseconds(s.IdleTimeoutMS) }

// WaitTimeout limits the wait for a free connection, and a dial.
func (s Settings) WaitTimeout() time.Duration { return milliseconds(s.WaitTimeoutMS) }

// RetryDelay is what Listmonk has from 6.2 on.
func (s Settings) RetryDelay() time.Duration { return milliseconds(s.RetryDelayMS) }

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// must ends the program if something that the caller asked for makes no sense.
func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
