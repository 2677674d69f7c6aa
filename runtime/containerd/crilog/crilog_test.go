package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"shoal/internal/polling"
)

// content joins the entries of a log by stream, newlines where lines ended.
func content(t interface{ Fatalf(string, ...any) }, data []byte) map[string]string {
	out := map[string]string{}
	for line := range bytes.Lines(data) {
		entry, err := ParseEntry(line)
		if err != nil {
			t.Fatalf("%v", err)
		}
		out[entry.Stream] += string(entry.Content)
		if !entry.Partial {
			out[entry.Stream] += "\n"
		}
		if len(entry.Content) > maxLine {
			t.Fatalf("entry of %d bytes", len(entry.Content))
		}
	}
	return out
}

func TestWhateverIsWrittenIsRead(t *testing.T) {
	folder := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		file, err := os.CreateTemp(folder, "")
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		log, err := Open(Target{Path: file.Name()})
		if err != nil {
			t.Fatal(err)
		}
		streams := map[string]*Stream{"stdout": log.Stream("stdout"), "stderr": log.Stream("stderr")}
		wrote := map[string]string{}
		piece := rapid.OneOf(
			rapid.StringMatching(`[ -~\n]{0,40}`),
			rapid.Custom(func(t *rapid.T) string { return strings.Repeat("x", rapid.IntRange(0, 3*maxLine).Draw(t, "long")) }),
		)
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			name := rapid.SampledFrom([]string{"stdout", "stderr"}).Draw(t, "stream")
			text := piece.Draw(t, "text")
			wrote[name] += text
			if n, err := streams[name].Write([]byte(text)); n != len(text) || err != nil {
				t.Fatalf("wrote %d of %d: %v", n, len(text), err)
			}
			if rapid.Bool().Draw(t, "flush") {
				streams[name].Flush()
			}
		}
		for _, s := range streams {
			s.Flush()
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		read := content(t, data)
		for name, want := range wrote {
			if read[name] != want {
				t.Fatalf("%s: %q, want %q", name, read[name], want)
			}
		}
	})
}

func TestRotationKeepsWholeLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "0.log")
	log, err := Open(Target{Path: path, MaxBytes: 200, MaxFiles: 3})
	if err != nil {
		t.Fatal(err)
	}
	s := log.Stream("stdout")
	for i := range 100 {
		if _, err := s.Write([]byte(strings.Repeat(string(rune('a'+i%26)), 30) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Err(), log.Close()); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		content(t, data)
	}
}

func TestFullDiskLosesOnlyWhatDoesNotFit(t *testing.T) {
	folder := t.TempDir()
	if err := unix.Mount("small", folder, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	})
	log, err := Open(Target{Path: filepath.Join(folder, "0.log")})
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(folder, "filler")
	if err := os.WriteFile(filler, make([]byte, 60<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := log.Stream("stdout")
	for range 100 {
		if n, err := s.Write([]byte(strings.Repeat("x", 1000) + "\n")); n != 1001 || err != nil {
			t.Fatalf("the container would have to wait: %d, %v", n, err)
		}
	}
	if !errors.Is(s.Err(), unix.ENOSPC) {
		t.Errorf("error %v", s.Err())
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("after\n")); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(folder, "0.log"))
	if err != nil || !bytes.HasSuffix(data, []byte("stdout F after\n")) {
		t.Errorf("log ends with %q, %v", data[max(0, len(data)-40):], err)
	}
	content(t, data) // every entry is whole
}

func TestDrainFlushesAPrompt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log, err := Open(Target{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	source, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- log.Stream("stdout").Drain(source) }()
	if _, err := writer.WriteString("a line\npassword: "); err != nil {
		t.Fatal(err)
	}
	polling.Until(t, 5*time.Millisecond, 5*time.Second, "the prompt is in the log", func(context.Context) error {
		data, err := os.ReadFile(path)
		if err == nil && !bytes.HasSuffix(data, []byte("stdout P password: \n")) {
			err = fmt.Errorf("it has %q", data)
		}
		return err
	})
	writer.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

func TestTargetURL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Target{
			Path:     "/" + rapid.StringMatching(`[ -~]{1,40}`).Draw(t, "path"),
			MaxBytes: rapid.Int64Range(0, 1<<40).Draw(t, "max"),
			ExitPath: rapid.StringMatching(`|/[ -~]{1,40}`).Draw(t, "exit"),
		}
		if want.MaxBytes > 0 {
			want.MaxFiles = rapid.IntRange(0, 20).Draw(t, "files")
		}
		got, ok, err := ParseTarget(want.URL())
		if !ok || err != nil || got != want {
			t.Fatalf("%q: %+v, %v, %v; want %+v", want.URL(), got, ok, err, want)
		}
	})
	for _, other := range []string{"", "/run/x/fifo", "file:///x", "binary:///x?a=b"} {
		if _, ok, err := ParseTarget(other); ok || err != nil {
			t.Errorf("%q: %v, %v", other, ok, err)
		}
	}
}
