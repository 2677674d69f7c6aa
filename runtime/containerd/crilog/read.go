package crilog

import (
	"bytes"
	"fmt"
	"time"
)

// Entry is one line of a log file.
type Entry struct {
	At      time.Time
	Stream  string // stdout or stderr
	Partial bool   // the line goes on in the next entry of the stream
	Content []byte // without the newline
}

// ParseEntry reads one line, with or without its newline. Content points into line.
func ParseEntry(line []byte) (Entry, error) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	fields := bytes.SplitN(line, []byte(" "), 4)
	if len(fields) < 4 {
		return Entry{}, fmt.Errorf("log entry %q has no four fields", line)
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return Entry{}, fmt.Errorf("log entry: %w", err)
	}
	// Further tags may follow the first after a colon.
	tag, _, _ := bytes.Cut(fields[2], []byte(":"))
	return Entry{At: at, Stream: string(fields[1]), Partial: string(tag) == tagPartial, Content: fields[3]}, nil
}
