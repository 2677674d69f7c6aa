package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestShortRun hurts three peers for a minute, from one seed, and judges what their clients saw. Longer ones are `just robustness`.
func TestShortRun(t *testing.T) {
	out := &lines{t: t}
	err := run(t.Context(), Config{
		For: 45 * time.Second, Epoch: 45 * time.Second, Seed: 53, Peers: 3, Clients: 10, Namespaces: 6, Objects: 5,
		Rate: 200, MinRate: 10, MinAnswered: 0.5, Faults: faultNames(), Binary: peerBinary, Out: t.ArtifactDir(),
	}, out)
	if err != nil {
		t.Fatal(err)
	}
}

// TestBadArguments: what cannot be meant is refused before anything is started.
func TestBadArguments(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"run", "--faults", "earthquake"}, `there is no fault "earthquake"; there are [bit-flip`},
		{[]string{"check", "/no/such/file"}, "no such file"},
		{[]string{"run", "--for", "soon"}, "duration"},
	} {
		if err := execute(context.Background(), test.args, &lines{t: t}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.args, err, test.want)
		}
	}
}

// lines writes to a test's log.
type lines struct{ t *testing.T }

func (l *lines) Write(text []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(text), "\n"))
	return len(text), nil
}
