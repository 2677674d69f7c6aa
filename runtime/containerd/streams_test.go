//go:build linux

package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"shoal/internal/transcript"
	"shoal/runtime/pods"
)

// safeBuffer can be waited for.
type safeBuffer struct{ transcript.Buffer }

func (s *safeBuffer) wait(t *testing.T, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("output %q", text), func() error {
		if have := s.String(); !strings.Contains(have, text) {
			return fmt.Errorf("have %q", have)
		}
		return nil
	})
}

func TestStreams(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(nil)
	state := h.run(h.spec(uid, "sleep"))

	t.Run("exec gives code and both streams", func(t *testing.T) {
		var out, errs bytes.Buffer
		code, err := h.engine.Exec(t.Context(), state.ID, []string{"/probe", "exit", "42"}, pods.Stdio{Out: &out, Err: &errs})
		if err != nil || code != 42 || out.String() != "to stdout\n" || errs.String() != "to stderr\n" {
			t.Errorf("code %d, %v, %q, %q", code, err, out.String(), errs.String())
		}
	})
	t.Run("exec reads its input to the end", func(t *testing.T) {
		var out bytes.Buffer
		code, err := h.engine.Exec(t.Context(), state.ID, []string{"/probe", "echo"}, pods.Stdio{In: strings.NewReader("one\ntwo\n"), Out: &out})
		if err != nil || code != 0 || out.String() != "ONE\nTWO\nend of input\n" {
			t.Errorf("code %d, %v, %q", code, err, out.String())
		}
	})
	t.Run("exec with a terminal and a size", func(t *testing.T) {
		var out safeBuffer
		sizes := make(chan pods.Size, 1)
		sizes <- pods.Size{Width: 100, Height: 30}
		code, err := h.engine.Exec(t.Context(), state.ID, []string{"/probe", "show", "tty", "env"}, pods.Stdio{Out: &out, TTY: true, Resize: sizes})
		if err != nil || code != 0 || !strings.Contains(out.String(), "tty true") || !strings.Contains(out.String(), "TERM=xterm") {
			t.Errorf("code %d, %v, %q", code, err, out.String())
		}
	})
	t.Run("exec of what is not there", func(t *testing.T) {
		if _, err := h.engine.Exec(t.Context(), state.ID, []string{"/none"}, pods.Stdio{}); !errors.Is(err, pods.ErrStart) || !strings.Contains(err.Error(), "/none") {
			t.Errorf("error %v", err)
		}
		if _, err := h.engine.Exec(t.Context(), "none", []string{"/probe"}, pods.Stdio{}); !errors.Is(err, pods.ErrNotFound) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("exec ends with its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := h.engine.Exec(ctx, state.ID, []string{"/probe", "stubborn"}, pods.Stdio{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if code, err := h.engine.Exec(t.Context(), state.ID, []string{"/probe", "exit", fmt.Sprint(i)}, pods.Stdio{}); err != nil || code != i {
					t.Errorf("exec %d: %d, %v", i, code, err)
				}
			})
		}
		all.Wait()
	})
}

func TestAttach(t *testing.T) {
	h := newHost(t, nil)
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty %v", tty), func(t *testing.T) {
			uid := h.sandbox(nil)
			spec := h.spec(uid, "echo")
			spec.Stdin, spec.StdinOnce, spec.TTY = true, true, tty
			state := h.run(spec)
			input, writer := io.Pipe()
			var out safeBuffer
			attached := make(chan error, 1)
			go func() {
				attached <- h.engine.Attach(t.Context(), state.ID, pods.Stdio{In: input, Out: &out, TTY: tty})
			}()
			fmt.Fprintln(writer, "hello")
			out.wait(t, "HELLO")
			if tty {
				fmt.Fprint(writer, "\x04") // end of file, typed
			} else {
				writer.Close()
			}
			out.wait(t, "end of input")
			select {
			case err := <-attached:
				if err != nil {
					t.Errorf("attach: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("attach does not end with the container")
			}
			if state := h.waitExit(state.ID); state.ExitCode != 0 {
				t.Errorf("state %+v", state)
			}
			writer.Close()
		})
	}
	t.Run("leaving does not end the input", func(t *testing.T) {
		uid := h.sandbox(nil)
		spec := h.spec(uid, "echo")
		spec.Stdin = true
		state := h.run(spec)
		for _, word := range []string{"first", "second"} {
			var out safeBuffer
			ctx, cancel := context.WithCancel(t.Context())
			left := make(chan error, 1)
			go func() {
				left <- h.engine.Attach(ctx, state.ID, pods.Stdio{In: strings.NewReader(word + "\n"), Out: &out})
			}()
			out.wait(t, strings.ToUpper(word))
			cancel()
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Errorf("attach: %v", err)
			}
		}
	})
}

func TestLogRotation(t *testing.T) {
	h := newHost(t, nil)
	uid := h.sandbox(nil)
	spec := h.spec(uid, "count", "60")
	spec.LogMaxBytes, spec.LogMaxFiles = 1000, 3
	state := h.run(spec)
	var followed safeBuffer
	if err := h.engine.Attach(t.Context(), state.ID, pods.Stdio{Out: &followed}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(spec.LogPath + "*")
	if err != nil || len(files) != 3 {
		t.Errorf("files %v, %v", files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > 1100 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	lines := strings.Split(strings.TrimSpace(followed.String()), "\n")
	for i := 1; i < len(lines); i++ {
		var a, b int
		if _, err := fmt.Sscanf(lines[i-1]+" "+lines[i], "line %d line %d", &a, &b); err != nil || b != a+1 {
			t.Errorf("followed lines are not whole at %q, %q", lines[i-1], lines[i])
		}
	}
	if last := lines[len(lines)-1]; last != "line 59" {
		t.Errorf("last line %q", last)
	}
}
