package consensus_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAFullDiskEndsTheHostInOrder fills a small file system faster than any watch could see. The host, in a process of its own, says
// what happened in one sentence, and all it acknowledged is there when there is room again.
func TestAFullDiskEndsTheHostInOrder(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("shoal-test", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := &child{hostProcess: hostProcess{Peer: "a", Dir: dir, Peers: freeAddresses(t, "a")}}
	c.start(t)
	c.must(t, order{Verb: "found"})
	acknowledged := -1
	value := strings.Repeat("x", 1<<20)
	for i := range 100 {
		if _, err := c.ask(order{Verb: "put", Shard: 1, Key: fmt.Sprint("k", i), Value: fmt.Sprint(i) + value}); err != nil {
			break
		}
		acknowledged = i
	}
	ended := make(chan error, 1)
	go func() { ended <- c.command.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it ended as if nothing had happened")
		}
	case <-time.After(patience):
		t.Fatalf("the host goes on after %d writes:\n%s", acknowledged, c.errors)
	}
	text := c.errors.String()
	if !strings.Contains(text, "no space left") || strings.Contains(text, "goroutine ") || !strings.Contains(text, "cannot be written to") {
		t.Errorf("after %d writes it ended with\n%s", acknowledged, text)
	}
	if err := syscall.Mount("shoal-test", dir, "tmpfs", syscall.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	for i := range acknowledged + 1 {
		got := c.must(t, order{Verb: "get", Shard: 1, Key: fmt.Sprint("k", i)})
		if got.Value != fmt.Sprint(i)+value {
			t.Fatalf("write %d of %d is not there", i, acknowledged)
		}
	}
	if acknowledged < 3 {
		t.Errorf("only %d writes fit", acknowledged+1)
	}
}
