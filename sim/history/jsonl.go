package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// line is one line of a history file. Exactly one field is set.
type line struct {
	Meta        *Meta      `json:"meta,omitempty"`
	Operation   *Operation `json:"operation,omitempty"`
	Watch       *Watch     `json:"watch,omitempty"`
	Fault       *Fault     `json:"fault,omitempty"`
	Transaction []int64    `json:"transaction,omitempty"`
}

// Write writes the history as JSON lines: what it is first, then faults, transactions, operations and watches, one a line.
func Write(w io.Writer, h *History) error {
	buffered := bufio.NewWriter(w)
	encoder := json.NewEncoder(buffered)
	lines := []line{{Meta: &h.Meta}}
	for i := range h.Faults {
		lines = append(lines, line{Fault: &h.Faults[i]})
	}
	for _, transaction := range h.Transactions {
		lines = append(lines, line{Transaction: transaction})
	}
	for i := range h.Operations {
		lines = append(lines, line{Operation: &h.Operations[i]})
	}
	for i := range h.Watches {
		lines = append(lines, line{Watch: &h.Watches[i]})
	}
	for _, l := range lines {
		if err := encoder.Encode(l); err != nil {
			return fmt.Errorf("writing a history: %w", err)
		}
	}
	return buffered.Flush()
}

// Read reads what Write wrote. Its errors name the line.
func Read(r io.Reader) (*History, error) {
	h := &History{}
	reader := bufio.NewReader(r)
	for number := 1; ; number++ {
		text, err := reader.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("reading a history: %w", err)
		}
		last := err != nil
		if text = bytes.TrimSpace(text); len(text) > 0 {
			if err := h.take(text); err != nil {
				return nil, fmt.Errorf("line %d of the history: %w", number, err)
			}
		}
		if last {
			return h, nil
		}
	}
}

func (h *History) take(text []byte) error {
	var l line
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		return err
	}
	switch {
	case l.Meta != nil:
		h.Meta = *l.Meta
	case l.Operation != nil:
		h.Operations = append(h.Operations, *l.Operation)
	case l.Watch != nil:
		h.Watches = append(h.Watches, *l.Watch)
	case l.Fault != nil:
		h.Faults = append(h.Faults, *l.Fault)
	case l.Transaction != nil:
		h.Transactions = append(h.Transactions, l.Transaction)
	default:
		return errors.New("none of meta, operation, watch, fault and transaction")
	}
	return nil
}
