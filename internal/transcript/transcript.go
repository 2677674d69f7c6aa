// Package transcript keeps for tests what a process or a stream has written.
package transcript

import (
	"bytes"
	"sync"
)

// Buffer is a buffer that may be read while it is written. The zero Buffer is empty.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends.
func (t *Buffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

// String is what has been written so far.
func (t *Buffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}
