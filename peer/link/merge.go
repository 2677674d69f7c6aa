package link

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// mergedBytes is how much a mergedConn holds back before a writer has to wait.
const mergedBytes = 256 << 10

// closeTimeout is how long the end of a connection may take to write what it held back.
const closeTimeout = time.Second

// mergedConn writes behind: what is written while the process has other work goes out
// in one system call. An event that hundreds of watches of a connection see is hundreds
// of small TLS records, one after the other, each of which would cost a call that takes
// longer than the event does. On a process that has nothing else to do nothing is held back.
//
// An error of the connection is returned by a later Write, or by none: whoever needs to
// know that something arrived has an answer to wait for.
type mergedConn struct {
	net.Conn
	// merging says that writes are held back. Before, this is a plain connection.
	merging atomic.Bool

	mu sync.Mutex
	// changed tells the flusher of something to write or of the end, and writers of room.
	changed *sync.Cond
	pending []byte
	// flusher says that somebody writes them.
	flusher, closing bool
	deadline         time.Time
	alarm            *time.Timer // wakes writers at the deadline
	err              error
}

// mergeBuffers are for what is held back; most bursts fit.
var mergeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 32<<10); return &b }}

func newMergedConn(conn net.Conn) *mergedConn {
	c := &mergedConn{Conn: wholeConn{conn}}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// merge begins to hold writes back, between two of them.
func (c *mergedConn) merge() { c.merging.Store(true) }

func (c *mergedConn) expired() bool {
	return !c.deadline.IsZero() && time.Until(c.deadline) <= 0
}

// Write implements net.Conn.
func (c *mergedConn) Write(b []byte) (int, error) {
	if !c.merging.Load() {
		return c.Conn.Write(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) >= mergedBytes && c.err == nil && !c.closing && !c.expired() {
		c.changed.Wait()
	}
	switch {
	case c.expired():
		return 0, os.ErrDeadlineExceeded
	case c.err != nil:
		return 0, c.err
	case c.closing:
		return 0, net.ErrClosed
	}
	if c.pending == nil {
		c.pending = (*mergeBuffers.Get().(*[]byte))[:0]
	}
	c.pending = append(c.pending, b...)
	if !c.flusher {
		c.flusher = true
		go c.flush()
	}
	return len(b), nil
}

// flush writes what is pending until nothing is.
func (c *mergedConn) flush() {
	spare := (*mergeBuffers.Get().(*[]byte))[:0]
	defer func() { mergeBuffers.Put(&spare) }()
	for {
		// Whoever is ready to run may have something to write too.
		runtime.Gosched()
		c.mu.Lock()
		if len(c.pending) == 0 || c.err != nil {
			c.flusher = false
			if last := c.pending; last != nil {
				c.pending = nil // a connection at rest keeps no buffer
				mergeBuffers.Put(&last)
			}
			c.changed.Broadcast()
			c.mu.Unlock()
			return
		}
		out := c.pending
		c.pending = spare[:0]
		c.changed.Broadcast()
		c.mu.Unlock()
		_, err := c.Conn.Write(out)
		spare = out
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
		}
	}
}

// SetWriteDeadline implements net.Conn. It is about further writes: what was taken
// before is still delivered, as by a kernel's buffer.
func (c *mergedConn) SetWriteDeadline(t time.Time) error {
	if !c.merging.Load() {
		return c.Conn.SetWriteDeadline(t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.alarm != nil {
		c.alarm.Stop()
	}
	c.deadline = t
	if !t.IsZero() {
		c.alarm = time.AfterFunc(time.Until(t), c.changed.Broadcast)
	}
	return nil
}

// SetDeadline implements net.Conn.
func (c *mergedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close writes what is held back, within a second, and closes the connection.
func (c *mergedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return c.Conn.Close()
	}
	c.closing = true
	c.changed.Broadcast()
	if c.alarm != nil {
		c.alarm.Stop()
	}
	if c.flusher {
		deadline := c.Conn.SetWriteDeadline(time.Now().Add(closeTimeout))
		for c.flusher && deadline == nil {
			c.changed.Wait()
		}
	}
	return c.Conn.Close()
}

// wholeConn ends as a whole: when it takes nothing more its reader ends too. On a connection whose reader waits on, gRPC asks for streams
// again and again, without a pause. A kernel's TCP does the same but for deadlines.
type wholeConn struct{ net.Conn }

func (c wholeConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}
