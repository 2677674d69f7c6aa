package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"shoal/cli/lab"
	"shoal/sim/clients"
	"shoal/sim/history"
)

// Config says what to run.
type Config struct {
	// For is how long, Epoch how much of that is recorded and judged at a time.
	For, Epoch time.Duration
	Seed       int64
	// Peers, Clients, Namespaces and Objects (per namespace and resource) are numbers.
	Peers, Clients, Namespaces, Objects int
	// Rate is how many operations a second all clients together aim at; MinRate how many they must reach for the run to be valid, and
	// MinAnswered which share of them must be answered while a minority of the peers is hurt.
	Rate, MinRate, MinAnswered float64
	Faults                     []string
	// Binary is the peer, Out the folder where the history of a failure is left.
	Binary, Out string
}

// diskSize is that of each peer's disk: some hundred megabytes, so that filling it takes no long.
const diskSize = 600 << 20

// errFailed says that a promise was broken; what and where has been printed.
var errFailed = errors.New("the cluster broke a promise")

// run opens a cluster and goes on until the time is over or something is wrong.
func run(ctx context.Context, cfg Config, out io.Writer) (err error) {
	for _, kind := range cfg.Faults {
		if _, known := faultKinds[kind]; !known {
			return fmt.Errorf("there is no fault %q; there are %v", kind, faultNames())
		}
	}
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	say("seed %d: %d peers, %d clients, %d namespaces, faults %v", cfg.Seed, cfg.Peers, cfg.Clients, cfg.Namespaces, cfg.Faults)
	l, err := lab.Open(ctx, lab.Config{Peers: cfg.Peers, Binary: cfg.Binary, Disk: diskSize, Clocks: true, Progress: lab.Progress(out)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	n := newNemesis(l, say)
	watched, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.supervise(watched)
	}()
	defer func() { stop(); <-ended }() // before the lab is closed
	began := time.Now()
	for number := 1; number == 1 || time.Since(began) < cfg.For; number++ {
		e := &epoch{cfg: cfg, number: number, lab: l, nemesis: n, say: say}
		e.chance = rand.New(rand.NewPCG(uint64(cfg.Seed), uint64(number)))
		if err := e.runAndJudge(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		e.removeNamespaces(ctx)
	}
	return nil
}

// runAndJudge is one epoch with its verdict.
func (e *epoch) runAndJudge(ctx context.Context) error {
	faults := plan(e.chance, e.cfg.Faults, e.cfg.Peers, min(e.cfg.Epoch, e.cfg.For))
	e.say("epoch %d: %d faults", e.number, len(faults))
	h, violations, err := e.run(ctx, faults)
	if h == nil || ctx.Err() != nil {
		return err
	}
	begun := time.Now()
	violations = append(violations, history.Check(h, history.Options{})...)
	m := clients.Measure(h)
	e.say("epoch %d: %s; judged in %.1f s", e.number, m, time.Since(begun).Seconds())
	invalid := m.Invalid(e.cfg.MinRate, e.cfg.MinAnswered)
	if err == nil && invalid == nil && len(violations) == 0 {
		return nil
	}
	keepErr := e.keep(h, violations)
	if err == nil && len(violations) > 0 {
		err = errFailed
	}
	return errors.Join(err, invalid, keepErr)
}

// keep leaves the history, its pictures and the peers' logs behind, and says where.
func (e *epoch) keep(h *history.History, violations []history.Violation) error {
	dir := filepath.Join(e.cfg.Out, fmt.Sprintf("robustness-%d-%d", e.cfg.Seed, e.number))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, "history.jsonl")
	if err := writeFile(file, func(w io.Writer) error { return history.Write(w, h) }); err != nil {
		return err
	}
	for _, peer := range e.lab.Peers {
		text, err := os.ReadFile(peer.Log)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, peer.Name+".log"), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if err := drawAll(dir, h, violations); err != nil {
		return err
	}
	for _, v := range violations {
		e.say("%s", v)
	}
	e.say("history, pictures and logs: %s\nto judge it again: go run ./cli/robustness check %s", dir, file)
	return nil
}
