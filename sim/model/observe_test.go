package model

import (
	"context"
	"errors"
	"testing"
	"time"
)

// watched keeps everything that an observer is told.
type watched struct {
	events  []Event
	samples []Sample
	then    func(Sample)
}

func (w *watched) Event(e Event) { w.events = append(w.events, e) }

func (w *watched) Sample(s Sample) {
	w.samples = append(w.samples, s)
	if w.then != nil {
		w.then(s)
	}
}

// TestObserversChangeNothing compares a run that is observed with one that is not, and what was told with what is known.
func TestObserversChangeNothing(t *testing.T) {
	cfg := swarm(3)
	plain, err := Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var seen watched
	cfg.Observer, cfg.SampleEvery = &seen, 250*time.Millisecond
	observed, err := Run(cfg)
	if err != nil || observed.Hash != plain.Hash {
		t.Errorf("observed the trace is %s, else %s (%v)", observed.Hash, plain.Hash, err)
	}
	counts := map[EventKind]int{}
	for i, e := range seen.events {
		counts[e.Kind]++
		if i > 0 && e.At < seen.events[i-1].At {
			t.Errorf("an event of %s comes after one of %s", e.At, seen.events[i-1].At)
		}
	}
	faults := 0
	for _, f := range cfg.AllFaults() {
		if faults++; f.For > 0 {
			faults++
		}
	}
	if counts[EventFault] != faults || counts[EventEvicted] != plain.Evictions || counts[EventDesired] == 0 {
		t.Errorf("events: %v; there were %d faults and ends of faults, and %d evictions", counts, faults, plain.Evictions)
	}
	if want := int(cfg.Length/cfg.SampleEvery) + 1; len(seen.samples) != want {
		t.Fatalf("%d samples, want %d", len(seen.samples), want)
	}
	last := seen.samples[len(seen.samples)-1]
	if last.Ready != last.Wanted || last.NodesReady != cfg.Nodes || last.NodesUp != cfg.Nodes || last.Led != last.Shards || last.Failed != 0 || last.Asked != last.Ready {
		t.Errorf("at the end, when all is well: %+v", last)
	}
}

// TestDrawnFaultsCanBeWrittenDown runs faults that are drawn, and the same ones named one by one.
func TestDrawnFaultsCanBeWrittenDown(t *testing.T) {
	cfg := swarm(5)
	drawn, err := Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Faults, cfg.Random = cfg.Random.Draw(cfg.Seed, cfg.Nodes), Swarm{}
	written, err := Run(cfg)
	if err != nil || written.Hash != drawn.Hash {
		t.Errorf("written down the trace is %s, drawn %s (%v)", written.Hash, drawn.Hash, err)
	}
}

func TestRunsCanBeStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	cfg := swarm(1)
	cfg.SampleEvery = time.Second
	cfg.Observer = &watched{then: func(s Sample) {
		if s.At >= 20*time.Second {
			stop()
		}
	}}
	outcome, err := RunContext(ctx, cfg)
	if !errors.Is(err, context.Canceled) || outcome.Steps == 0 {
		t.Errorf("%d steps, %v", outcome.Steps, err)
	}
}
