// Package model is a bit-exact simulation of a whole cluster: one thread, a virtual clock, one seeded source of chance.
//
// What decides in it is production code: the state machine of consensus/store, the leaders' turns and the planners of placement, the claims
// ledger and the identity rule of runtime/pods, the fencing times of runtime/containerd/fence. What is modelled is what lies between: a shard is one
// replicated log with voters, a leader and elections; a node starts and stops containers with drawn delays; messages take drawn times and
// are lost where a fault says so. The turns of peer/meta.go and peer/lease.go are told again here as steps of the event
// queue, because there they wait in goroutines.
//
// Everything that happens is a step of one queue, ordered by time and then by when it was asked for. Every step enters the trace, so two
// runs are the same exactly if their traces have the same hash. Nothing here may range over a map where order matters, nor read a clock.
package model

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"

	"shoal/consensus/store"
	"shoal/placement/repair"
)

// Epoch is the moment at which every simulation starts.
var Epoch = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// Config describes a cluster, what is done to it, and for how long.
type Config struct {
	Seed  uint64
	Nodes int // present from the start, named n1 …
	Zones int // zones a, b, … by turns; 0 is 1
	// Allocatable of each node; ResourcePods included.
	Allocatable corev1.ResourceList
	Shards      int // data shards; 0 is 1. The meta shard comes on top.
	// Voters of each shard; 0 is 3.
	Voters int
	// ReplaceAfter is how long a peer is dead before its replicas are replaced; 0 is a minute.
	ReplaceAfter time.Duration
	Workloads    []Workload
	// Placed lets the pods of Deployments run already when these are written, spread evenly, instead of being rolled out.
	Placed bool
	Faults []Fault
	// Random adds faults drawn from the seed.
	Random Swarm
	// NoClients leaves out the few clients that read, write and watch, and with them the checkers of what they are told.
	NoClients bool
	// Operators adds a few operators, each disturbed in a way of its own, and with them the checker of how they end.
	Operators bool
	// Length of the run, in virtual time.
	Length time.Duration
	// ReadyWithin bounds the time from the end of the last fault until everything is as desired; 0 demands nothing.
	ReadyWithin time.Duration
	// Observer is told what happens, and every SampleEvery how things stand; nil is nobody.
	Observer    Observer
	SampleEvery time.Duration
	// Trace takes the readable part of the trace; nil is nobody.
	Trace io.Writer

	// bug is the deliberate fault of a test build; see bugs.go.
	bug string
}

// Workload is a Deployment with its Service, or a StatefulSet, a DaemonSet or a Job, present from the start. Each has a namespace of its own name.
type Workload struct {
	Name     string
	Stateful bool
	Daemon   bool // a pod on each node that suits it; Replicas is then how many nodes there are at first
	Replicas int
	Requests corev1.ResourceList // of each pod
	// Template is what its pods are made from; nil makes one of the requests. Folder is where it was read, if it was.
	Template *corev1.PodTemplateSpec
	Folder   string
	// Job makes it a Job: Replicas are then how many of its pods run at once. It has no Service. nil is none.
	Job *Job
	// Budgets protect its pods from being drained, too many at once.
	Budgets []policyv1.PodDisruptionBudgetSpec
}

// Outcome is what a run showed.
type Outcome struct {
	Hash      string // of the whole trace, in hexadecimal
	Steps     uint64
	Evictions int // pods taken off lost nodes
	Elections int // of new leaders, the first ones not counted
	Fenced    int // containers stopped by their own node because it was cut off
	Refused   int // claims
	// Braked names the zones in which evictions were ever held back.
	Braked map[string]bool
	// Settled is how long after the end of the last fault everything was as desired, for good; negative if it never was.
	Settled time.Duration
	// Violations are empty in a good run.
	Violations []Violation
}

// Violation is something a checker found.
type Violation struct {
	Checker string
	At      time.Duration // since the start
	Message string
}

func (v Violation) String() string { return fmt.Sprintf("%s: %s: %s", v.At, v.Checker, v.Message) }

// Model is one run.
type Model struct {
	cfg       Config
	now       time.Duration // since Epoch
	chance    *rand.Rand
	steps     steps
	asked     uint64
	hash      hash.Hash
	record    []byte
	scratch   []byte // of encodings that nobody keeps
	repair    repair.Options
	nodes     []*node
	byName    map[string]*node
	shards    []*shard // [0] is the meta shard
	vip       map[string]*discoveryv1.EndpointSlice
	vipIn     map[string]map[string]*discoveryv1.EndpointSlice // the same by namespace
	checks    checks
	placed    int // pods that ran from the beginning
	followers []*changes
	outcome   Outcome
	lastHeal  time.Duration // when the last fault is over
	network   network
	load      int            // overloads that have ended
	core      map[*node]bool // those that go on alone; nil while everybody counts
	busy      int            // faults under way that end by themselves, when they are done
	clocksSet bool           // a fault has set some clock
	misledTo  store.Revision // the highest revision that clocks have stamped most of which were wrong
	tally     tally
	jobs      map[string]*Workload // by namespace
	ran       map[string]int       // of Jobs' containers that have ended, see Model.fails
}

// step is one thing that happens.
type step struct {
	at   time.Duration
	turn uint64 // breaks ties: first asked, first served
	kind string
	do   func()
}

// steps is a heap with four children per step: half as deep as one with two, and without a step being boxed.
type steps []step

func (s *step) before(o *step) bool { return s.at < o.at || s.at == o.at && s.turn < o.turn }

func (s *steps) push(added step) {
	*s = append(*s, added)
	all := *s
	i := len(all) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if !added.before(&all[parent]) {
			break
		}
		all[i] = all[parent]
		i = parent
	}
	all[i] = added
}

func (s *steps) pop() step {
	all := *s
	first, last := all[0], all[len(all)-1]
	all[len(all)-1] = step{}
	all = all[:len(all)-1]
	*s = all
	if len(all) == 0 {
		return first
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= len(all) {
			break
		}
		for child := least + 1; child < min(4*i+5, len(all)); child++ {
			if all[child].before(&all[least]) {
				least = child
			}
		}
		if !all[least].before(&last) {
			break
		}
		all[i] = all[least]
		i = least
	}
	all[i] = last
	return first
}

// Run simulates the whole of cfg. Its error says what is wrong with cfg; what is wrong with the cluster stands in the outcome.
func Run(cfg Config) (Outcome, error) { return RunContext(context.Background(), cfg) }

// RunContext is Run, unless ctx ends before: then its error says why, and the outcome is that of the part which was simulated.
func RunContext(ctx context.Context, cfg Config) (Outcome, error) {
	m, err := newModel(cfg)
	if err != nil {
		return Outcome{}, err
	}
	for len(m.steps) > 0 && m.steps[0].at <= cfg.Length {
		if m.outcome.Steps%1024 == 0 && ctx.Err() != nil {
			return m.outcome, fmt.Errorf("stopped after %s of virtual time: %w", m.now.Round(time.Millisecond), context.Cause(ctx))
		}
		m.sample(m.steps[0].at - 1)
		m.next()
	}
	m.sample(cfg.Length)
	m.now = cfg.Length
	m.finish()
	m.outcome.Hash = hex.EncodeToString(m.hash.Sum(nil))
	return m.outcome, nil
}

func newModel(cfg Config) (*Model, error) {
	cfg.Zones, cfg.Shards = max(cfg.Zones, 1), max(cfg.Shards, 1)
	if cfg.Nodes < 1 {
		return nil, fmt.Errorf("a cluster needs at least one node, not %d", cfg.Nodes)
	}
	m := &Model{
		cfg: cfg, chance: rand.New(rand.NewPCG(cfg.Seed, 0x5ea)), hash: sha256.New(), repair: repair.Defaults(),
		byName: map[string]*node{}, vip: map[string]*discoveryv1.EndpointSlice{},
		vipIn: map[string]map[string]*discoveryv1.EndpointSlice{}, outcome: Outcome{Braked: map[string]bool{}, Settled: -1},
		jobs: map[string]*Workload{}, ran: map[string]int{},
	}
	for i := range cfg.Workloads {
		if w := &cfg.Workloads[i]; w.Job != nil {
			m.jobs[w.Name] = w
		}
	}
	if cfg.bug == bugNoBrake {
		m.repair.BrakeShare = 2
	}
	if cfg.bug == bugNoFencingTime {
		m.repair.Fencing = 0
	}
	m.checks = newChecks(m)
	m.found()
	if err := m.planFaults(); err != nil {
		return nil, err
	}
	m.after(checkEvery, "check", m.check)
	m.checks.clients.begin(m)
	m.checks.operators.begin(m)
	return m, nil
}

// next does the next step.
func (m *Model) next() {
	s := m.steps.pop()
	m.now = s.at
	m.outcome.Steps++
	m.record = binary.BigEndian.AppendUint64(m.record[:0], uint64(s.at))
	m.record = binary.BigEndian.AppendUint64(m.record, s.turn)
	m.record = append(m.record, s.kind...)
	m.hash.Write(m.record)
	s.do()
}

// after asks for a step.
func (m *Model) after(delay time.Duration, kind string, do func()) {
	m.asked++
	m.steps.push(step{m.now + delay, m.asked, kind, do})
}

// note adds a line to the trace, for people and for the hash.
func (m *Model) note(format string, args ...any) {
	m.record = fmt.Appendf(m.record[:0], "%10.3fs  ", m.now.Seconds())
	m.record = fmt.Appendf(m.record, format, args...)
	m.record = append(m.record, '\n')
	m.hash.Write(m.record)
	if m.cfg.Trace != nil {
		// A reader that has gone does not change what happens.
		_, _ = m.cfg.Trace.Write(m.record)
	}
}

// time is the virtual clock as a moment.
func (m *Model) time() time.Time { return Epoch.Add(m.now) }

// between draws a duration, to the microsecond.
func (m *Model) between(least, most time.Duration) time.Duration {
	return least + time.Duration(m.chance.Int64N(int64((most-least)/time.Microsecond)+1))*time.Microsecond
}

// The drawn delays of what is not simulated in detail.
func (m *Model) oneWay() time.Duration      { return m.between(200*time.Microsecond, 2*time.Millisecond) }
func (m *Model) commitDelay() time.Duration { return m.between(time.Millisecond, 8*time.Millisecond) }
