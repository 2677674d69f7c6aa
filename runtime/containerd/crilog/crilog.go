// Package crilog writes a container's output as a log file in CRI format:
//
//	2006-01-02T15:04:05.999999999Z stdout F a whole line
//	2006-01-02T15:04:05.999999999Z stdout P a part without its newline
//
// Source of the format: https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Scheme marks a container's stdout as a Target.
const Scheme = "crilog"

// maxLine is the longest content in one entry, bytes; longer lines become
// several P entries. It is what kubelet's reader expects (16 KiB).
const maxLine = 16 << 10

// Target says where the output of a container and its end are recorded. It
// travels as a URL in the stdout field of a task's create request.
type Target struct {
	Path     string // absolute path of the log
	MaxBytes int64  // rotate above this size; 0 = never
	MaxFiles int    // files kept in all, the current one included; below 2 the old log is dropped
	ExitPath string // absolute path of the exit record; "" = none
}

// URL is the inverse of ParseTarget.
func (t Target) URL() string {
	query := url.Values{}
	if t.MaxBytes > 0 {
		query.Set("max", strconv.FormatInt(t.MaxBytes, 10))
		query.Set("files", strconv.Itoa(t.MaxFiles))
	}
	if t.ExitPath != "" {
		query.Set("exit", t.ExitPath)
	}
	u := url.URL{Scheme: Scheme, Path: t.Path, RawQuery: query.Encode()}
	return u.String()
}

// ParseTarget reads a URL made by Target.URL; ok is false for anything else
// that may stand in a stdout field (a FIFO's path, another scheme).
func ParseTarget(text string) (t Target, ok bool, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != Scheme {
		return Target{}, false, nil
	}
	t = Target{Path: u.Path, ExitPath: u.Query().Get("exit")}
	if !filepath.IsAbs(t.Path) {
		return t, true, fmt.Errorf("log path %q is not absolute", t.Path)
	}
	if text := u.Query().Get("max"); text != "" {
		if t.MaxBytes, err = strconv.ParseInt(text, 10, 64); err != nil {
			return t, true, fmt.Errorf("max: %w", err)
		}
	}
	if text := u.Query().Get("files"); text != "" {
		if t.MaxFiles, err = strconv.Atoi(text); err != nil {
			return t, true, fmt.Errorf("files: %w", err)
		}
	}
	return t, true, nil
}

// Log is one log file, written by several streams at once.
type Log struct {
	target Target

	mu    sync.Mutex
	file  *os.File
	size  int64
	entry []byte // reused for every entry
}

// Open opens the log for appending, makes its folder when needed.
func Open(target Target) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(target.Path), 0o755); err != nil {
		return nil, fmt.Errorf("log folder: %w", err)
	}
	l := &Log{target: target}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Log) open() error {
	file, err := os.OpenFile(l.target.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = file, 0
	if info.Mode().IsRegular() {
		l.size = info.Size()
	}
	return nil
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// write appends one entry and rotates when the file has grown too large. The
// content holds no newline. A failed write (a full disk) loses the entry: the
// container must never wait for its log.
func (l *Log) write(at time.Time, stream, tag string, content []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		// A rotation failed, for want of space perhaps; each entry tries anew.
		if err := l.open(); err != nil {
			return err
		}
	}
	e := at.UTC().AppendFormat(l.entry[:0], time.RFC3339Nano)
	e = append(append(append(e, ' '), stream...), ' ')
	e = append(append(e, tag...), ' ')
	e = append(append(e, content...), '\n')
	l.entry = e
	n, err := l.file.Write(e)
	if err != nil {
		// Half an entry would spoil the next one too.
		if n > 0 {
			err = errors.Join(err, l.file.Truncate(l.size))
		}
		return fmt.Errorf("write log: %w", err)
	}
	l.size += int64(n)
	if l.target.MaxBytes > 0 && l.size >= l.target.MaxBytes && tag == tagFull {
		return l.rotate()
	}
	return nil
}

// rotate renames path.N-1 → path.N, …, path → path.1 and starts a new file.
func (l *Log) rotate() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	l.file = nil
	name := func(i int) string { return l.target.Path + "." + strconv.Itoa(i) }
	oldest := l.target.MaxFiles - 1
	if oldest < 1 {
		if err := os.Remove(l.target.Path); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
		return l.open()
	}
	for i := oldest; i > 1; i-- {
		if err := os.Rename(name(i-1), name(i)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	if err := os.Rename(l.target.Path, name(1)); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	return l.open()
}

const (
	tagFull    = "F"
	tagPartial = "P"
)

// Stream splits one of the container's streams into entries. It is used by
// one goroutine at a time.
type Stream struct {
	log  *Log
	name string
	rest []byte // a line's beginning that is not written yet
	err  error  // of the first write that failed
}

// Stream returns a stream named stdout or stderr.
func (l *Log) Stream(name string) *Stream { return &Stream{log: l, name: name} }

// Write takes output as it comes. It always consumes everything; Err tells
// what went wrong.
func (s *Stream) Write(p []byte) (int, error) {
	at, n := time.Now(), len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		line := p[:i]
		if len(s.rest) > 0 {
			s.rest = append(s.rest, line...)
			line = s.rest
		}
		for len(line) > maxLine {
			s.put(at, tagPartial, line[:maxLine])
			line = line[maxLine:]
		}
		s.put(at, tagFull, line)
		s.rest, p = s.rest[:0], p[i+1:]
	}
	s.rest = append(s.rest, p...)
	for len(s.rest) >= maxLine {
		s.put(at, tagPartial, s.rest[:maxLine])
		s.rest = append(s.rest[:0], s.rest[maxLine:]...)
	}
	return n, nil
}

// Flush writes the beginning of an unfinished line as a P entry, so that
// prompts and progress bars can be followed.
func (s *Stream) Flush() {
	if len(s.rest) == 0 {
		return
	}
	s.put(time.Now(), tagPartial, s.rest)
	s.rest = s.rest[:0]
}

// Err returns the first error of a write; what came after it may be written.
func (s *Stream) Err() error { return s.err }

func (s *Stream) put(at time.Time, tag string, content []byte) {
	if err := s.log.write(at, s.name, tag, content); err != nil && s.err == nil {
		s.err = err
	}
}
