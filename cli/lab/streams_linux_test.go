package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func logsFollow(t *testing.T, c *cluster) {
	ns := c.namespace(t, "logs")
	c.apply(t, ns, sh("talk", "i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line $i; echo oops $i >&2; sleep 0.1; done; exec e2e pause"))
	c.podIs(t, ns, "talk", "ready", ready)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	follow := c.command(ctx, tools.kubectl, "-n", ns, "logs", "-f", "talk")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		seen = append(seen, lines.Text())
		if lines.Text() == "line 30" {
			break
		}
	}
	cancel()
	_ = follow.Wait()
	wants(t, strings.Join(seen, "\n"), "line 1\n", "oops 1\n", "line 29\n", "line 30")
	if tail := c.kubectl(t, "-n", ns, "logs", "talk", "--tail=1", "--timestamps"); !strings.HasPrefix(tail, "20") || strings.Count(tail, "\n") != 1 {
		t.Errorf("the last line with its time: %q", tail)
	}
}

// openTerminal makes a pseudo-terminal: what is written to the first is typed into the second.
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return keyboard, terminal
}

func execTerminal(t *testing.T, c *cluster) {
	ns := c.namespace(t, "exec")
	c.apply(t, ns, sh("box", "exec e2e pause"))
	c.podIs(t, ns, "box", "ready", ready)
	keyboard, terminal := openTerminal(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	session := c.command(ctx, tools.kubectl, "-n", ns, "exec", "-it", "box", "--", "sh")
	session.Stdin, session.Stdout, session.Stderr = terminal, terminal, terminal
	session.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := session.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	screen := make(chan string, 1)
	go func() {
		var text bytes.Buffer
		_, _ = io.Copy(&text, keyboard) // it ends with an error when the other side is closed
		screen <- text.String()
	}()
	// The window's size is a message of its own, which may come after the first keys.
	for _, typed := range []string{"tty\n", "until stty size 2>&1 | grep 77; do sleep 0.1; done\n", "echo $((6*7))-is-it\n", "exit 5\n"} {
		if _, err := keyboard.WriteString(typed); err != nil {
			t.Fatal(err)
		}
	}
	err := session.Wait()
	if session.ProcessState.ExitCode() != 5 {
		t.Errorf("the session ended with %v, want exit status 5", err)
	}
	wants(t, <-screen, "/dev/pts/", "33 77", "42-is-it")

	// Without a terminal: both streams, the standard input, and the exit status.
	out, err := c.try(t.Context(), "typed in", tools.kubectl, "-n", ns, "exec", "-i", "box", "--", "sh", "-c", "cat; echo to-stderr >&2; exit 7")
	if err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("exit status: %v", err)
	}
	wants(t, out, "typed in", "to-stderr")
	c.refused(t, "", []string{"nosuch"}, "-n", ns, "exec", "box", "--", "nosuch")
}

func portForwarded(t *testing.T, c *cluster) {
	ns := c.namespace(t, "forward")
	c.apply(t, ns, web("web", 1, "forwarded"))
	c.readyPods(t, soon, ns, "app=web", 1)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	forward := c.command(ctx, tools.kubectl, "-n", ns, "port-forward", "deployment/web", ":8080")
	out, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = forward.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var port int
	if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	for range 3 { // several connections through one session
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		wants(t, string(body), "forwarded")
	}
}

func filesCopied(t *testing.T, c *cluster) {
	ns := c.namespace(t, "copy")
	c.apply(t, ns, sh("box", "exec e2e pause"))
	c.podIs(t, ns, "box", "ready", ready)
	dir := t.TempDir()
	content := bytes.Repeat([]byte("all the bytes "), 100_000)
	if err := os.WriteFile(filepath.Join(dir, "there"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "cp", filepath.Join(dir, "there"), ns+"/box:/tmp/file")
	c.kubectl(t, "cp", ns+"/box:/tmp/file", filepath.Join(dir, "back"))
	if back := must(t)(readFile(filepath.Join(dir, "back"))); !bytes.Equal(back, content) {
		t.Errorf("%d bytes came back of %d", len(back), len(content))
	}
}

// answers waits until a host of the lab gets an HTTP answer with the wanted text.
func (c *cluster) answers(t testing.TB, what string, from *host, address, want string) {
	t.Helper()
	eventually(t, soon, what, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		body, err := fetchFrom(ctx, dialerFunc(from.dial), "http://"+address+"/")
		if err == nil && !strings.Contains(body, want) {
			err = fmt.Errorf("the answer is %q", body)
		}
		return err
	})
}

func must(t testing.TB) func([]byte, error) []byte {
	return func(value []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func readFile(path string) ([]byte, error) { return os.ReadFile(path) }
