package crilog

import (
	"errors"
	"io"
	"os"
	"time"
)

// idle is how long an unfinished line may rest before it is written as a part.
const idle = 50 * time.Millisecond

// Drain copies source into the stream until end of file, flushing unfinished
// lines after a short pause. source must support deadlines (a FIFO or pipe
// opened non-blocking). It returns the first error of reading or writing.
func (s *Stream) Drain(source *os.File) error {
	buffer := make([]byte, 16<<10)
	for {
		var deadline time.Time // none: a quiet container costs no wake-ups
		if len(s.rest) > 0 {
			deadline = time.Now().Add(idle)
		}
		if err := source.SetReadDeadline(deadline); err != nil {
			return err
		}
		n, err := source.Read(buffer)
		if n > 0 {
			if _, err := s.Write(buffer[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.Flush()
		case errors.Is(err, io.EOF):
			s.Flush()
			return s.Err()
		default:
			s.Flush()
			return err
		}
	}
}
