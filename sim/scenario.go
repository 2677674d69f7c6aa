// Package sim reads scenarios: short texts that say what a cluster is, what happens to it, and what is expected to come of it. It runs them,
// keeps what came of them, and makes those that fail as short as they can be. The simulation itself is in sim/model, pictures and timelines
// are in sim/report, and the language is described in sim/README.md.
package sim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/sim/model"
)

// Scenario is a parsed text.
type Scenario struct {
	// Name is the file's, without its ending; Title is the comment that the text begins with, in one line.
	Name, Title string
	Config      model.Config
	Expects     []Expectation
	// LeftOut says what else stands in folders of manifests, by kind.
	LeftOut []string

	marks []mark
}

// mark is where a fault was written.
type mark struct {
	line, column int
	form         string
	fault        model.Fault
}

// Limits of what a text may ask for. They are far above what a machine can simulate in a day, and keep a slip of the finger from filling it.
const (
	mostNodes    = 20_000
	mostShards   = 1024
	mostPods     = 4_000_000
	mostFaults   = 1_000_000
	mostClients  = 100_000
	longest      = 1000 * time.Hour
	mostLineSize = 1 << 16
)

// Parse reads a scenario. Its errors are *SyntaxError, or the reader's. Folders of manifests are looked for beside the file of that name;
// name may be empty.
func Parse(r io.Reader, name string) (*Scenario, error) {
	s := &Scenario{Config: model.Config{Seed: 1, Zones: 1, Shards: 1}}
	p := &parser{scenario: s, file: name, folder: filepath.Dir(name)}
	if name != "" {
		s.Name = strings.TrimSuffix(filepath.Base(name), ".txt")
	}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, mostLineSize)
	for scanner.Scan() {
		p.line++
		if err := p.take(scanner.Text()); err != nil {
			return nil, err
		}
	}
	switch err := scanner.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, p.wrong(p.line+1, 0, "the line is longer than 64 KiB", formDirective)
	case err != nil:
		return nil, err
	}
	if err := p.finish(); err != nil {
		return nil, err
	}
	return s, nil
}

// Open reads the scenario of a file or, if there is no such file, the built-in one of that name.
func Open(name string) (*Scenario, error) {
	file, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		text, known := builtin(name)
		if !known {
			return nil, unknownScenario(name)
		}
		return Parse(strings.NewReader(text), filepath.Base(name))
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a folder; expected: a scenario, or a name of `peer sim list`", name)
	}
	return Parse(file, name)
}

// Faults are all faults of the scenario, those that are drawn from its seed included, in order of time.
func (s *Scenario) Faults() []model.Fault { return s.Config.AllFaults() }

// End is when the last fault is over.
func (s *Scenario) End() time.Duration {
	var end time.Duration
	for _, f := range s.Faults() {
		end = max(end, f.At+f.For)
	}
	return end
}

// Change gives the scenario another seed, number of nodes or length; nil and 0 leave them. What the text says must still make sense.
func (s *Scenario) Change(seed *uint64, nodes int, length time.Duration) error {
	if seed != nil {
		s.Config.Seed = *seed
	}
	if nodes != 0 {
		s.Config.Nodes = nodes
		s.countDaemons()
	}
	if length != 0 {
		s.Config.Length = length
	}
	if s.Config.Nodes < 1 || s.Config.Nodes > mostNodes {
		return fmt.Errorf("%d nodes cannot be simulated; expected: 1 to %d", s.Config.Nodes, mostNodes)
	}
	if s.Config.Length > longest {
		return fmt.Errorf("%s cannot be simulated; expected: at most %s", s.Config.Length, longest)
	}
	for _, f := range s.Faults() {
		if err := f.Check(s.Config.Nodes, s.Config.Zones, s.Config.Shards); err != nil {
			return fmt.Errorf("at %s: %w", f.At, err)
		}
		if f.At > s.Config.Length {
			return fmt.Errorf("%s is less than the scenario needs: %s happens at %s", s.Config.Length, f.Kind, f.At)
		}
	}
	return nil
}
