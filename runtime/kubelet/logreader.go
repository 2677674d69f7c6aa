package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	// pollEvery is how often a followed log is looked at.
	pollEvery = 50 * time.Millisecond
	// logFiles is how many rotated files there can be beside the present one; more than any writer keeps.
	logFiles = 16
	// copyBuffer bounds what is collected before it is sent.
	copyBuffer = 32 << 10
)

// errLimit ends a copy that reached its byte limit.
var errLimit = errors.New("limit reached")

// logReader reads one container's log in CRI format ("<RFC 3339 time> <stream> <F|P> <text>"), its rotated files (path.N … path.1) first.
type logReader struct {
	path    string
	options logOptions
	running func() bool // whether more may come
}

// copy writes the log to out as the options want it. A log that does not exist (yet) is an empty one.
func (l logReader) copy(ctx context.Context, out io.Writer) error {
	files, err := l.open()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err := l.skipToTail(files); err != nil {
		return err
	}
	c := &logCopy{options: l.options, out: bufio.NewWriterSize(out, copyBuffer)}
	for _, f := range files {
		if err := c.drain(f); err != nil {
			return c.end(err)
		}
	}
	if !l.options.follow {
		return c.end(nil)
	}
	var last *os.File
	if len(files) > 0 {
		last = files[len(files)-1]
	}
	return c.end(l.follow(ctx, c, last))
}

// open opens all files of the log, the oldest first.
func (l logReader) open() ([]*os.File, error) {
	var files []*os.File
	for i := logFiles; i >= 0; i-- {
		f, err := os.Open(l.file(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// file is the i-th rotated file; the 0th is the present one.
func (l logReader) file(i int) string {
	if i == 0 {
		return l.path
	}
	return fmt.Sprintf("%s.%d", l.path, i)
}

// skipToTail moves each file's offset so that only the last lines remain.
func (l logReader) skipToTail(files []*os.File) error {
	left := l.options.tail
	if left < 0 {
		return nil
	}
	for i := len(files) - 1; i >= 0; i-- {
		found, err := seekTail(files[i], left)
		if err != nil {
			return err
		}
		left -= found
	}
	return nil
}

// seekTail moves to the beginning of the last n lines and returns how many there are, at most n.
func seekTail(f *os.File, n int64) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return 0, err
	}
	var found int64
	buf := make([]byte, copyBuffer)
	for at := end; at > 0; {
		size := min(at, int64(len(buf)))
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if found++; found == n {
				_, err := f.Seek(at+i+1, io.SeekStart)
				return found, err
			}
		}
	}
	if end > 0 {
		found++
	}
	_, err = f.Seek(0, io.SeekStart)
	return found, err
}

// follow goes on where the last file ended, over rotations, until the container has ended and its log is read, or ctx ends.
func (l logReader) follow(ctx context.Context, c *logCopy, last *os.File) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	var own []*os.File
	defer func() {
		for _, f := range own {
			f.Close()
		}
	}()
	for {
		more := l.running() // before reading: what it wrote until now is then read
		if last != nil {
			if err := c.drain(last); err != nil {
				return err
			}
		}
		next, err := l.successors(last)
		if err != nil {
			return err
		}
		for _, f := range next {
			own = append(own, f)
			if err := c.drain(last); last != nil && err != nil { // what came between the last look and the rotation
				return err
			}
			if err := c.drain(f); err != nil {
				return err
			}
			last = f
		}
		if err := c.out.Flush(); err != nil {
			return err
		}
		if !more {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// successors opens the files that are newer than last, the oldest first.
func (l logReader) successors(last *os.File) ([]*os.File, error) {
	if last == nil {
		return l.open()
	}
	known, err := last.Stat()
	if err != nil {
		return nil, err
	}
	at := -1
	for i := 0; i <= logFiles && at < 0; i++ {
		info, err := os.Stat(l.file(i))
		if err == nil && os.SameFile(info, known) {
			at = i
		} else if err != nil && i > 0 {
			break
		}
	}
	if at == 0 {
		return nil, nil
	}
	if at < 0 { // it was rotated away altogether, or removed
		if _, err := os.Stat(l.path); err != nil {
			return nil, nil //nolint:nilerr // nothing newer
		}
		at = logFiles + 1
	}
	var out []*os.File
	for i := at - 1; i >= 0; i-- {
		f, err := os.Open(l.file(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, err
		}
		out = append(out, f)
	}
	return out, nil
}

// logCopy turns CRI lines into what users see.
type logCopy struct {
	options logOptions
	out     *bufio.Writer
	sent    int64
	rest    map[*os.File][]byte // an unfinished line at the end of a file
	partial map[string]bool     // by stream: the line before went on
}

// end flushes and hides that a limit was the reason.
func (c *logCopy) end(err error) error {
	if errors.Is(err, errLimit) {
		err = nil
	}
	return errors.Join(err, c.out.Flush())
}

// drain copies everything that can be read from f now.
func (c *logCopy) drain(f *os.File) error {
	if f == nil {
		return nil
	}
	if c.rest == nil {
		c.rest, c.partial = map[*os.File][]byte{}, map[string]bool{}
	}
	reader := bufio.NewReaderSize(f, copyBuffer)
	for {
		line, err := reader.ReadBytes('\n')
		if len(c.rest[f]) > 0 {
			line = append(c.rest[f], line...)
			delete(c.rest, f)
		}
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				c.rest[f] = line
			}
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.line(line); err != nil {
			return err
		}
	}
}

// line writes one CRI line. Those that are not CRI lines are left out.
func (c *logCopy) line(raw []byte) error {
	fields := bytes.SplitN(raw, []byte{' '}, 4)
	if len(fields) != 4 {
		return nil
	}
	stream, text := string(fields[1]), fields[3]
	if c.options.stream != "" && c.options.stream != stream {
		return nil
	}
	if !c.options.since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
		if err != nil || at.Before(c.options.since) {
			return nil //nolint:nilerr // a line without a time is not since anything
		}
	}
	if c.options.timestamps && !c.partial[stream] {
		if err := c.write(append(fields[0], ' ')); err != nil {
			return err
		}
	}
	c.partial[stream] = string(fields[2]) == "P"
	if c.partial[stream] {
		text = bytes.TrimSuffix(text, []byte{'\n'})
	}
	return c.write(text)
}

func (c *logCopy) write(p []byte) error {
	if limit := c.options.limit; limit > 0 {
		if left := limit - c.sent; int64(len(p)) >= left {
			_, err := c.out.Write(p[:left])
			return errors.Join(err, errLimit)
		}
	}
	c.sent += int64(len(p))
	_, err := c.out.Write(p)
	return err
}
