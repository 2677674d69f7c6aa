package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"shoal/mesh/vip"
	"shoal/peer/admin"
	"shoal/sim/clients"
	"shoal/sim/history"
)

// Plan is what a run does. The same plan draws the same faults; what comes of them may differ in details.
type Plan struct {
	Seed     uint64
	Peers    int
	Zones    []string
	Workload Workload
	Users    Users
	// ReplaceAfter is how long a peer must be dead before its replicas are made anew elsewhere; 0 leaves the default of a minute.
	ReplaceAfter time.Duration
	// Settled, if there is one, is called when everything is as desired for the first time.
	Settled func()
	Mode    Mode
	Faults  []Fault       // kinds to draw from; none is a calm run
	For     time.Duration // of virtual time with faults
	Settle  time.Duration // within which everything must be as desired after the last fault
	Calm    time.Duration // for how long the checkers look on after that: some promises are broken late
	// Enough, if there is one, ends the run when it says so of a violation.
	Enough func(Violation) bool
}

// Report is what came of a run.
type Report struct {
	Violations []Violation
	Events     []Event
	Virtual    time.Duration // from the fleet's beginning to its end
	Settled    time.Duration // from the end of the last fault until everything was as desired
	Faults     int
	Reads      int64 // pictures of the store that checkers were given
	Compared   int64 // states of replicas that were compared with another's
	// History is what clients did and saw, from Recorded on, times in it are since then; nil if it came to none. Judge measures it.
	History  *history.History
	Recorded time.Duration
	Clients  clients.Measured
}

// Event is one line of a run's story.
type Event struct {
	At   time.Duration // since the fleet began
	Text string
}

func (e Event) String() string { return fmt.Sprintf("%9.3f s  %s", e.At.Seconds(), e.Text) }

// run is a run under way.
type run struct {
	plan  Plan
	fleet *Fleet
	begun time.Time
	users *users

	reads, compared atomic.Int64

	mu     sync.Mutex
	report Report
	wrong  map[string]bool // violations that were told, by checker and message
	hurt   map[string]bool // machines under a fault
	lost   map[string]bool // machines that have lost their power once
	vips   []vip.FrontKey
	core   []*Machine // who has to do without the rest; nil is everybody
	enough context.CancelFunc
	found  bool // what Plan.Enough waits for
}

// machines are those that must work in the end.
func (r *run) machines() []*Machine {
	if r.core != nil {
		return r.core
	}
	return r.fleet.Machines()
}

// Run makes a fleet, gives it work, hurts it and judges it. It must be called in a bubble of testing/synctest; dir takes the peers' small
// files.
func Run(ctx context.Context, dir string, plan Plan, log *slog.Logger) (Report, error) {
	r := &run{plan: plan, fleet: Open(dir, plan.Seed, log), begun: time.Now(), wrong: map[string]bool{}, hurt: map[string]bool{}, lost: map[string]bool{}}
	defer r.fleet.Close()
	if err := r.fleet.Grow(ctx, plan.Peers, plan.Zones...); err != nil {
		return r.report, err
	}
	r.note("%d peers are ready", plan.Peers)
	client, err := r.fleet.Client(r.fleet.Machines()[0])
	if err != nil {
		return r.report, err
	}
	defer closeIdle(client)
	if plan.ReplaceAfter != 0 {
		if err := r.fleet.Set(ctx, r.fleet.Machines()[0], "replace-after", plan.ReplaceAfter.String()); err != nil {
			return r.report, err
		}
	}
	if err := plan.Workload.apply(ctx, client); err != nil {
		return r.report, err
	}
	if _, err := r.await(ctx, plan.Settle); err != nil {
		return r.report, fmt.Errorf("before any fault: %w", err)
	}
	r.note("everything is as desired")
	if plan.Settled != nil {
		plan.Settled()
	}
	if err := r.learnVIPs(ctx, client); err != nil {
		return r.report, err
	}
	if r.users, err = r.openUsers(ctx); err != nil {
		return r.report, err
	}
	err = r.hurtAndJudge(ctx)
	r.users.close()
	r.report.History, r.report.Recorded = r.users.crowd.Recorder.History(), r.users.began
	r.report.Virtual, r.report.Reads, r.report.Compared = time.Since(r.begun), r.reads.Load(), r.compared.Load()
	return r.report, err
}

func (r *run) hurtAndJudge(ctx context.Context) error {
	ctx, r.enough = context.WithCancel(ctx)
	defer r.enough()
	watching, stop := context.WithCancel(ctx)
	var checkers sync.WaitGroup
	for _, check := range []func(context.Context){r.watchIdentities, r.watchRestarts, r.watchStore, r.watchVIPs, r.watchReplicas, r.watchVoters} {
		checkers.Go(func() { check(watching) })
	}
	defer checkers.Wait()
	defer stop()
	if len(r.plan.Faults) > 0 {
		n := &nemesis{fleet: r.fleet, chance: rand.New(rand.NewPCG(r.plan.Seed, 0x6661756c74)), kinds: r.plan.Faults, story: r}
		if err := r.hurtFleet(ctx, n); err != nil {
			return r.unless(err)
		}
	} else if err := pause(ctx, r.plan.For); err != nil {
		return r.unless(err)
	}
	took, err := r.await(ctx, r.plan.Settle)
	r.report.Settled = took
	if ctx.Err() != nil {
		return r.unless(err)
	}
	if err != nil {
		r.blame("convergence", "%s after the last fault: %v", r.plan.Settle, err)
		return nil
	}
	r.note("everything is as desired, %.1f s after the last fault", took.Seconds())
	if err := pause(ctx, r.plan.Calm); err != nil {
		return r.unless(err)
	}
	r.users.finish(ctx, r.machines())
	return nil
}

// unless is the error that ended a run, nil if that was because what it was to find has been found.
func (r *run) unless(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.found {
		return nil
	}
	return err
}

// await waits until everything is as desired.
func (r *run) await(ctx context.Context, most time.Duration) (time.Duration, error) {
	begun := time.Now()
	for {
		err := r.converged(ctx)
		if err == nil {
			return time.Since(begun), nil
		}
		if took := time.Since(begun); took > most {
			if client, cannot := r.anyClient(ctx); cannot == nil {
				err = fmt.Errorf("%w%s", err, r.plan.Workload.waiting(ctx, client))
			}
			return took, err
		}
		if err := errors.Join(ctx.Err(), pause(ctx, 200*time.Millisecond)); err != nil {
			return time.Since(begun), err
		}
	}
}

func (r *run) learnVIPs(ctx context.Context, client kubernetes.Interface) error {
	services, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{LabelSelector: ""})
	if err != nil {
		return err
	}
	for _, service := range services.Items {
		if service.Spec.ClusterIP == corev1.ClusterIPNone || service.Namespace == metav1.NamespaceDefault {
			continue
		}
		key, err := frontOf(&service)
		if err != nil {
			return err
		}
		r.vips = append(r.vips, key)
	}
	return nil
}

func (r *run) fronts() []vip.FrontKey { return r.vips }

// note adds a line to the story.
func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Events = append(r.report.Events, Event{time.Since(r.begun), fmt.Sprintf(format, args...)})
}

// blame reports a violation, once.
func (r *run) blame(checker, format string, args ...any) {
	v := Violation{Checker: checker, At: time.Since(r.begun), Message: fmt.Sprintf(format, args...)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wrong[checker+v.Message] {
		r.wrong[checker+v.Message] = true
		r.report.Violations = append(r.report.Violations, v)
		r.report.Events = append(r.report.Events, Event{v.At, "WRONG: " + v.String()})
		if r.plan.Enough != nil && r.plan.Enough(v) {
			r.found = true
			r.enough()
		}
	}
}

// trouble says which machines are under a fault, and whether it takes their power.
func (r *run) trouble(machines []*Machine, begins, power bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range machines {
		r.hurt[m.Name] = begins
		if power {
			r.lost[m.Name] = true
		}
	}
}

func (r *run) troubled(m *Machine) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hurt[m.Name]
}

// excused tells whether containers of a machine have a reason to be started again.
func (r *run) excused(m *Machine) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost[m.Name]
}

// anyClient is a client of some peer that answers.
func (r *run) anyClient(ctx context.Context) (*kubernetes.Clientset, error) {
	for _, m := range r.fleet.Machines() {
		if r.troubled(m) || !r.fleet.Running(m) || r.fleet.ready(ctx, m) != nil {
			continue
		}
		return r.fleet.Client(m)
	}
	return nil, errors.New("no peer answers")
}

// closeIdle ends a client's connections.
func closeIdle(client *kubernetes.Clientset) {
	if c, ok := client.RESTClient().(*rest.RESTClient); ok && c.Client != nil {
		c.Client.CloseIdleConnections()
	}
}

// Set is `peer set` on a machine.
func (f *Fleet) Set(ctx context.Context, m *Machine, name, value string) error {
	transport := f.local(m)
	defer transport.CloseIdleConnections()
	return admin.NewClientOver(transport).Set(ctx, name, value, func(string) {})
}

// local connects to the socket of local administration.
func (f *Fleet) local(m *Machine) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return f.Network.dial(ctx, m.Address, netip.AddrPortFrom(m.Address, 1).String())
	}}
}

// Status is what `peer status` shows on a machine.
func (f *Fleet) Status(ctx context.Context, m *Machine) (*admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	transport := f.local(m)
	defer transport.CloseIdleConnections()
	return admin.NewClientOver(transport).Status(ctx)
}
