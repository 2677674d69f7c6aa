package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// clockReader is set for a process of this test binary that does nothing but read its clock.
const clockReader = "SHOAL_TEST_CLOCK_READER"

// readClock answers each line of its input with the time of day, and how long the process has run by the monotonic clock.
func readClock() {
	began := time.Now()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(time.Now().UnixNano(), int64(time.Since(began)))
	}
}

func TestAProcessHasAClockOfItsOwn(t *testing.T) {
	c := &clock{ahead: -3 * time.Hour}
	t.Cleanup(c.close)
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), clockReader+"=yes")
	command.SysProcAttr = &syscall.SysProcAttr{}
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		started <- c.start(command)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(out)
	last := time.Duration(-1)
	for _, ahead := range []time.Duration{-3 * time.Hour, 5 * time.Hour, -1700 * time.Millisecond, 1700 * time.Millisecond, -24 * 365 * time.Hour, 0} {
		if err := c.set(ahead, true); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		line, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		var wall, up int64
		if _, err := fmt.Sscan(strings.TrimSpace(line), &wall, &up); err != nil {
			t.Fatal(err)
		}
		if at := time.Unix(0, wall).Add(-ahead); at.Before(before.Round(0)) || at.After(time.Now().Round(0)) {
			t.Errorf("%v ahead: it reads %v, %v when it was read", ahead, time.Unix(0, wall), before)
		}
		if ran := time.Duration(up); ran < last || ran > time.Since(before)+time.Minute {
			t.Errorf("%v ahead: its monotonic clock went from %v to %v", ahead, last, ran)
		} else {
			last = ran
		}
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := command.Wait(); err != nil {
		t.Error(err)
	}
}
