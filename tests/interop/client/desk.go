package client

import (
	"encoding/json"
	"os"
	"sync"
	"time"
)

// behindMax is how late a paced message may be and still be made up for: the clock of a busy
// machine wakes a worker late, but a stall is not followed by a burst.
const behindMax = 20 * time.Millisecond

type command struct {
	Send     int   `json:"send"`
	PadBytes int   `json:"pad_bytes"`
	Pause    *bool `json:"pause"`
}

type told struct {
	ID    string `json:"id"`
	Error string `json:"error"`
	MS    int64  `json:"ms"`
}

type idle struct {
	Idle     bool `json:"idle"`
	Commands int  `json:"commands"`
}

// desk is where the workers fetch their messages and leave word of what became of them.
type desk struct {
	mutex    sync.Mutex
	changed  *sync.Cond
	report   *json.Encoder
	every    time.Duration // from one message to the next, over all workers
	next     time.Time     // when the next message is due
	number   int           // of the next message
	waiting  int           // messages that no worker has yet
	padBytes int           // by which the next messages are longer
	busy     int           // workers with a message in hand
	paused   bool
	commands int // obeyed so far
}

func newDesk(ratePerS float64) *desk {
	d := &desk{report: json.NewEncoder(os.Stdout)}
	d.changed = sync.NewCond(&d.mutex)
	if ratePerS > 0 {
		d.every = time.Duration(float64(time.Second) / ratePerS)
	}
	return d
}

// take waits for a message and for its time; its number, and by how much it is longer.
func (d *desk) take() (n, padBytes int) {
	d.mutex.Lock()
	for d.paused || d.waiting == 0 {
		d.changed.Wait()
	}
	d.waiting--
	d.busy++
	n, padBytes = d.number, d.padBytes
	d.number++
	due := d.next
	if earliest := time.Now().Add(-behindMax); due.Before(earliest) {
		due = earliest
	}
	d.next = due.Add(d.every)
	d.mutex.Unlock()

	if d.every > 0 {
		time.Sleep(time.Until(due))
	}
	return n, padBytes
}

// done reports what the pool returned for a message.
func (d *desk) done(id string, err error, took time.Duration) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	line := told{ID: id, MS: took.Milliseconds()}
	if err != nil {
		line.Error = err.Error()
	}
	must(d.report.Encode(line))
	d.busy--
	d.tell()
}

// obey carries out one line of input.
func (d *desk) obey(command command) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.commands++
	if command.Send > 0 {
		d.waiting += command.Send
		d.padBytes = command.PadBytes
	}
	if command.Pause != nil {
		d.paused = *command.Pause
	}
	d.tell()
}

// tell wakes all who wait here, and reports if no message is under way nor will be.
func (d *desk) tell() {
	d.changed.Broadcast()
	if d.busy == 0 && (d.paused || d.waiting == 0) {
		must(d.report.Encode(idle{Idle: true, Commands: d.commands}))
	}
}

// untilSent returns when nothing waits or is in hand.
func (d *desk) untilSent() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.paused = false
	d.changed.Broadcast()
	for d.busy > 0 || d.waiting > 0 {
		d.changed.Wait()
	}
}
