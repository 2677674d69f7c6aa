package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/runtime/pods"
	"shoal/sim/history"
)

// start runs a container of a pod on a machine, as its agent would.
func start(t *testing.T, m *Machine, uid, name string, identity bool, attempt int) {
	t.Helper()
	r := runtime{Engine: m.engine, process: process{m, func() bool { return true }}}
	ctx := t.Context()
	if err := r.Renewed(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CreateSandbox(ctx, pods.SandboxSpec{PodUID: uid, Namespace: "ns", Name: name, Identity: identity}); err != nil {
		t.Fatal(err)
	}
	c, err := r.Create(ctx, pods.ContainerSpec{PodUID: uid, Namespace: "ns", PodName: name, Name: "c", Attempt: attempt, Image: Image})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Start(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
}

// TestCheckersCanFail shows each checker that watches machines what it must blame.
func TestCheckersCanFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Open(t.TempDir(), 1, peerLog)
		defer f.Close()
		r := &run{fleet: f, begun: time.Now(), wrong: map[string]bool{}, hurt: map[string]bool{}, lost: map[string]bool{}}
		a, b := f.Add(""), f.Add("")
		start(t, a, "uid-1", "db-0", true, 0)
		start(t, b, "uid-2", "db-0", true, 0)
		start(t, b, "uid-3", "web-x", false, 1)
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		defer stop()
		go r.watchRestarts(ctx)
		r.watchIdentities(ctx)
		for _, want := range []string{"identity", "restarts"} {
			found := false
			for _, v := range r.report.Violations {
				found = found || strings.HasPrefix(v.String(), want)
			}
			if !found {
				t.Errorf("%s blamed nothing: %v", want, r.report.Violations)
			}
		}
	})
}

// newRun is a run without a fleet, to be shown things.
func newRun() *run {
	return &run{begun: time.Now(), wrong: map[string]bool{}, hurt: map[string]bool{}, lost: map[string]bool{}}
}

// blames demands that a checker blames something, or nothing.
func blames(t *testing.T, r *run, checker string, want bool) {
	t.Helper()
	found := slices.ContainsFunc(r.report.Violations, func(v Violation) bool { return v.Checker == checker })
	if found != want {
		t.Errorf("%s: blamed is %t, wanted %t: %v", checker, found, want, r.report.Violations)
	}
}

func node(name, zone string, lost time.Time) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
	n.Status.Allocatable = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("3")}
	if !lost.IsZero() {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(lost)}}
	}
	return n
}

func pod(uid, on, memory string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: uid}}
	p.Spec.NodeName = on
	p.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}}}}
	return p
}

func TestCapacityCanFail(t *testing.T) {
	r := newRun()
	nodes := []corev1.Node{node("a", "", time.Time{})}
	r.capacity(picture{nodes: nodes, pods: []corev1.Pod{pod("1", "a", "512Mi"), pod("2", "a", "512Mi"), pod("3", "", "512Mi")}})
	blames(t, r, "capacity", false)
	r.capacity(picture{nodes: nodes, pods: []corev1.Pod{pod("1", "a", "512Mi"), pod("2", "a", "513Mi")}})
	blames(t, r, "capacity", true)
}

// TestClaimsCanFail: room for a pod that is bound elsewhere is a leak after a while, and not before.
func TestClaimsCanFail(t *testing.T) {
	r, check, now := newRun(), claimsCheck{}, time.Now()
	ledgers := map[string][]pods.Claim{"a": {{PodUID: "1"}, {PodUID: "2"}}}
	for _, test := range []struct {
		after  time.Duration
		blamed bool
	}{{0, false}, {claimKept, false}, {claimKept + time.Second, true}} {
		check.look(r, picture{at: now.Add(test.after), pods: []corev1.Pod{pod("1", "a", "1"), pod("2", "b", "1")}}, ledgers)
		blames(t, r, "claims", test.blamed)
	}
}

// TestBrakeCanFail: of a zone of which most looks lost nothing may be evicted, from another one it may, and a node may come back.
func TestBrakeCanFail(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name   string
		lost   int
		zone   string // of the node whose pod goes
		blamed bool
	}{{"most of the zone", 3, "a", true}, {"too few", 2, "a", false}, {"another zone", 3, "b", false}} {
		r, check := newRun(), brakeCheck{}
		nodes := []corev1.Node{node("b1", "b", now)}
		for i := range 4 {
			lost := now
			if i >= test.lost {
				lost = time.Time{}
			}
			nodes = append(nodes, node(fmt.Sprint("a", i+1), "a", lost))
		}
		all := []corev1.Pod{pod("1", test.zone+"1", "1"), pod("2", "a2", "1")}
		check.look(r, picture{at: now, nodes: nodes, pods: all})
		check.look(r, picture{at: now.Add(3 * time.Second), nodes: nodes, pods: all})
		blames(t, r, "brake", false)
		check.look(r, picture{at: now.Add(4 * time.Second), nodes: nodes, pods: all[1:]})
		blames(t, r, "brake", test.blamed)
	}
}

// TestReplicasCanFail: states of one revision that differ in a single value are not the same.
func TestReplicasCanFail(t *testing.T) {
	view := func(value string) consensus.View {
		s := store.New(1, store.Limits{})
		s.Apply(store.Transaction{Stamp: 100 * store.Tick, Ops: []store.Op{{Key: "k", Value: []byte(value)}}})
		return s.View()
	}
	r, check := newRun(), replicasCheck{states: map[replicaAt]replicaState{}, done: map[string]store.Revision{}}
	check.compare(r, []replicaView{{"a", 1, view("x")}, {"b", 1, view("x")}}, time.Now())
	blames(t, r, "replicas", false)
	// One that comes later is compared with what the others were.
	check.compare(r, []replicaView{{"c", 1, view("y")}}, time.Now())
	blames(t, r, "replicas", true)
	if r.compared.Load() != 2 {
		t.Errorf("%d were compared", r.compared.Load())
	}
}

// TestClocksCanFail: a revision may be a little ahead of the time, and not much.
func TestClocksCanFail(t *testing.T) {
	s := store.New(1, store.Limits{})
	s.Apply(store.Transaction{Stamp: 100 * store.Tick, Ops: []store.Op{{Key: "k"}}})
	at := s.View().Revision().Time()
	for ahead, blamed := range map[time.Duration]bool{-time.Hour: false, clockAhead: false, clockAhead + time.Second: true} {
		r := newRun()
		r.clocks([]replicaView{{"a", 1, s.View()}}, at.Add(-ahead))
		blames(t, r, "clock", blamed)
	}
}

// TestVIPsCanFail: a rule may lead to a pod that is gone for a while, and for longer while some shard cannot do its work.
func TestVIPsCanFail(t *testing.T) {
	rule, now := []staleRule{{"a", "10.96.0.1:80", "10.32.0.2:8080"}}, time.Now()
	for _, test := range []struct {
		name         string
		stale        []staleRule // in between
		quorate, bad bool
	}{{"it stays", rule, true, true}, {"it went and came", nil, true, false}, {"a shard had no leader", rule, false, false}} {
		r, check := newRun(), vipCheck{}
		check.look(r, rule, true, now)
		check.look(r, test.stale, test.quorate, now.Add(staleVIP))
		blames(t, r, "vip", false)
		check.look(r, rule, true, now.Add(staleVIP+time.Second))
		blames(t, r, "vip", test.bad)
	}
}

func TestVotersCanFail(t *testing.T) {
	group := func(peers ...string) map[uint64]consensus.ShardStatus {
		var s consensus.ShardStatus
		for _, peer := range peers {
			s.Members = append(s.Members, consensus.Member{Peer: peer, Voter: true})
		}
		return map[uint64]consensus.ShardStatus{1: s}
	}
	now := time.Now()
	alive := map[string]bool{"a": true, "b": true, "c": false, "d": true}
	r, check := newRun(), votersCheck{}
	check.look(r, group("a", "b", "c"), alive, now)
	check.look(r, group("a", "b", "d"), alive, now.Add(replacedWithin+time.Second))
	check.look(r, group("a", "b", "c"), alive, now.Add(replacedWithin+2*time.Second))
	blames(t, r, "voters", false)
	check.look(r, group("a", "b", "c"), alive, now.Add(3*replacedWithin))
	blames(t, r, "voters", true)
	r = newRun()
	check.look(r, group("a", "b"), alive, now)
	blames(t, r, "voters", true)
}

func TestZombiesAreFound(t *testing.T) {
	group := consensus.ShardStatus{Members: []consensus.Member{{Peer: "a", ReplicaID: 1}, {Peer: "b", ReplicaID: 2}}}
	for id, want := range map[uint64]bool{1: false, 3: true} {
		if err := zombie("a", consensus.ShardStatus{Local: true, ReplicaID: id}, group); (err != nil) != want {
			t.Errorf("replica %d: %v", id, err)
		}
	}
}

// TestLittleWorkIsInvalid: a run in which clients did too little proves nothing; and what they saw wrong is told.
func TestLittleWorkIsInvalid(t *testing.T) {
	write := history.Object{Key: "configmaps/a/thing-1", UID: "u", Value: "v", Revision: 10}
	report := Report{History: &history.History{Operations: []history.Operation{
		{ID: 1, Client: 1, Kind: history.Create, Key: write.Key, Value: "v", Invoke: 1, Return: 2, Outcome: history.OK, Object: &write},
		{ID: 2, Client: 1, Kind: history.List, Key: "configmaps/", Invoke: 3, Return: 4, Outcome: history.OK, ListRevision: 20, Final: true},
	}}}
	if err := report.Judge(Plan{}); err == nil {
		t.Error("two operations are enough")
	}
	if !slices.ContainsFunc(report.Violations, func(v Violation) bool { return v.Checker == "durable" }) {
		t.Errorf("an acknowledged write is not there: %v", report.Violations)
	}
}

// TestTheWatchdogStopsIdentities: what must not run twice ends when nobody renews the lease.
func TestTheWatchdogStopsIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Open(t.TempDir(), 1, peerLog)
		defer f.Close()
		m := f.Add("")
		start(t, m, "uid-1", "db-0", true, 0)
		start(t, m, "uid-2", "web-x", false, 0)
		time.Sleep(10 * time.Second)
		if running := m.engine.RunningPods(); len(running) != 1 || running[0] != "uid-2" {
			t.Errorf("running: %v", running)
		}
	})
}
