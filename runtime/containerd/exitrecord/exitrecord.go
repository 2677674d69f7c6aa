// Package exitrecord is the file in which the shim leaves how a container
// ended, for whoever asks after containerd itself has forgotten.
package exitrecord

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Record is the end of a container's main process.
type Record struct {
	ID        string    `json:"id"`
	PID       uint32    `json:"pid"`
	Status    uint32    `json:"status"` // 128 + n for signal n
	ExitedAt  time.Time `json:"exitedAt"`
	OOMKilled bool      `json:"oomKilled,omitempty"` // the kernel killed in the container's cgroup for memory
	Message   string    `json:"message,omitempty"`   // why it did not start at all
}

// Write replaces the file at path; a reader sees all of it or the old one. It
// is not synced to disk: a host that loses power loses its containers too.
func Write(path string, record Record) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("exit record: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("exit record: %w", err)
	}
	return nil
}

// Read returns the record at path; os.ErrNotExist when there is none.
func Read(path string) (Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	var record Record
	if err := json.Unmarshal(data, &record); err != nil {
		return Record{}, fmt.Errorf("exit record %s: %w", path, err)
	}
	return record, nil
}
