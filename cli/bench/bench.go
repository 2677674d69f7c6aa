// Package bench takes the project's figures: on labs of real peers, each beside a reference that is measured in the same run, so that what
// counts is a ratio and not the machine.
//
// A file per figure. One lab is open at a time; figures that need one of the same size share it.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"shoal/cli/lab"
)

// Config says what to measure.
type Config struct {
	// Only names the figures to take; empty means all. See Names.
	Only []string
	// Quick measures fewer times, to see that everything works; its figures are no more than hints.
	Quick bool
	// JSON is a file that gets the rows too; empty means none.
	JSON string
	// Dir holds the labs' and the references' data; empty means the system's temporary folder.
	Dir string
}

// figure is one thing to measure. One measurement may give several rows.
type figure struct {
	name    string
	about   string
	measure func(ctx context.Context, s *session) ([]Row, error)
}

// figures are in an order that lets neighbours share a lab.
var figures = []figure{
	{"consensus", "durable writes and linearizable reads of the store alone, beside etcd", measureConsensus},
	{"failover", "kill of a leader → next write, over all shards of the store alone", measureFailover},
	{"shards", "what idle shards cost", measureShards},
	{"scheduling", "decisions about pods, with scheduler_perf's cases; how their cost grows", measureScheduling},
	{"binding", "pods bound end to end, on simulated nodes; the writes of a rollover", measureBinding},
	{"leader", "what a leader's view costs: time, memory, one change", measureLeader},
	{"start", "start of a peer → its API is ready", measureStart},
	{"pod", "pod create → Ready", measurePods},
	{"service", "Service create → its virtual IP answers, one peer", measureService},
	{"deployment", "Deployment 0 → 50 → 0 on one peer", measureDeployment},
	{"idle", "memory and CPU of idle peers", measureIdle},
	{"service3", "Service create → its virtual IP answers on every peer of three", measureServiceEverywhere},
	{"creates", "API creates per second, three peers", measureCreates},
	{"watches", "events to 1,000 watchers, three peers", measureWatches},
	{"crowd", "100,000 pods of 3 KB in three peers: memory, a list of all, start of a peer", measureCrowd},
	{"loss", "kill of a peer → everything works again", measureLoss},
}

// Names are the names of all figures with what they are, one per line.
func Names() string {
	var out strings.Builder
	for _, f := range figures {
		fmt.Fprintf(&out, "%-11s %s\n", f.name, f.about)
	}
	return out.String()
}

// Run measures and prints one table. A figure that cannot be taken is an error, but does not keep the others from being taken; one that
// misses its aim is not an error.
func Run(ctx context.Context, cfg Config, out io.Writer) (err error) {
	chosen, err := choose(cfg.Only)
	if err != nil {
		return err
	}
	if err := checkRoot(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cfg.Dir, "shoal-bench-")
	if err != nil {
		return err
	}
	s := &session{cfg: cfg, dir: dir, out: out, progress: lab.Progress(out)}
	defer func() { err = errors.Join(err, s.close()) }()

	var rows []Row
	var failed []error
	for _, f := range chosen {
		fmt.Fprintf(out, "\n%s (%s)\n", f.name, f.about)
		// The load before: afterwards it is the measurement's own.
		begun, load := time.Now(), loadAverage()
		taken, err := f.measure(ctx, s)
		for i := range taken {
			taken[i].Figure, taken[i].Load, taken[i].At = f.name, load, begun
		}
		rows = append(rows, taken...)
		if err != nil {
			failed = append(failed, fmt.Errorf("figure %s: %w", f.name, err))
			fmt.Fprintf(out, "  %v\n", err)
			// Whatever state the lab is in, the next figure gets a new one.
			failed = append(failed, s.closeLab())
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(rows) > 0 {
		fmt.Fprintln(out)
		failed = append(failed, printTable(out, rows))
	}
	if cfg.JSON != "" {
		failed = append(failed, writeJSON(cfg.JSON, rows))
	}
	return errors.Join(failed...)
}

func choose(only []string) ([]figure, error) {
	if len(only) == 0 {
		return figures, nil
	}
	var chosen []figure
	for _, f := range figures {
		if slices.Contains(only, f.name) {
			chosen = append(chosen, f)
		}
	}
	for _, name := range only {
		if !slices.ContainsFunc(figures, func(f figure) bool { return f.name == name }) {
			return nil, fmt.Errorf("there is no figure %q; there are:\n%s", name, Names())
		}
	}
	return chosen, nil
}

func writeJSON(path string, rows []Row) error {
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
