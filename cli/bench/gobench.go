package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// benchmarksProgram holds the benchmarks of package peer: leaders over simulated nodes are wired in its tests, and nowhere else.
const benchmarksProgram = "peerbench"

// benchmarkLimit ends benchmarks that do not end by themselves.
const benchmarkLimit = 30 * time.Minute

// goBenchmark is one result line of Go's benchmarks: the name without "Benchmark" and without the number of cores, and each metric by unit.
type goBenchmark struct {
	name    string
	metrics map[string]float64
}

// runBenchmarks runs the benchmarks of benchmarksProgram whose names match, once each.
func (s *session) runBenchmarks(ctx context.Context, pattern string, more ...string) ([]goBenchmark, error) {
	program, err := findProgram(benchmarksProgram)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.dir, benchmarksProgram+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	arguments := append([]string{"-test.run", "^$", "-test.bench", pattern, "-test.benchtime", "1x", "-test.timeout", benchmarkLimit.String()}, more...)
	command := exec.CommandContext(ctx, program, arguments...)
	command.Env = append(os.Environ(), "TMPDIR="+dir) // its stores are on the disk that is measured
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = 10 * time.Second
	var complaint strings.Builder
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s %s", benchmarksProgram, err, out, strings.TrimSpace(complaint.String()))
	}
	return parseBenchmarks(string(out))
}

// parseBenchmarks reads the format that `go test -bench` prints: https://golang.org/design/14313-benchmark-format. Lines of other kinds are
// passed over. No result at all is an error, and so is one that cannot be read.
func parseBenchmarks(text string) ([]goBenchmark, error) {
	var all []goBenchmark
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if cut := strings.LastIndexByte(name, '-'); cut > 0 {
			if _, err := strconv.Atoi(name[cut+1:]); err == nil {
				name = name[:cut]
			}
		}
		b := goBenchmark{name: name, metrics: map[string]float64{}}
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("unreadable result %q: %w", strings.TrimSpace(line), err)
			}
			b.metrics[fields[i+1]] = value
		}
		all = append(all, b)
	}
	if len(all) == 0 {
		return nil, errors.New("no benchmark has a result")
	}
	return all, nil
}

// one is a metric as a sample of one measurement.
func (b goBenchmark) one(unit string) Sample { return sampleOf([]float64{b.metrics[unit]}) }
