package peer

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/mesh/membership"
	"shoal/peer/lease"
	"shoal/placement"
	"shoal/placement/repair"
)

func TestANewMetaLeaderGivesNodesTimeUnlessGossipHasGivenThemUp(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	view := placement.NewView()
	for _, name := range []string{"heard", "silent", "failed", "early", "restarting"} {
		view.Upsert(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	table := &renewals{}
	table.renew("heard", now.Add(-100*time.Millisecond), 0, nil)
	table.renew("early", now.Add(-10*time.Second), 0, nil) // in an earlier term of this peer
	const leads = lease.HeardWithin + time.Millisecond     // whoever lives would have been heard by now, so gossip is believed
	m := &meta{
		renewals: table, repair: repair.Defaults(), view: view, since: now.Add(-leads),
		failed: func() map[string]bool { return map[string]bool{"failed": true, "restarting": true} },
	}
	leases := m.leases(now, map[string]bool{"restarting": true})
	age := func(name string) time.Duration { return now.Sub(leases[name]) }
	if age("heard") != 100*time.Millisecond {
		t.Errorf("a renewed lease is %s old", age("heard"))
	}
	for _, name := range []string{"silent", "early"} {
		if age(name) != leads-lease.TakeoverGrace {
			t.Errorf("%s counts as heard %s ago, want the grace since this leader took over", name, age(name))
		}
	}
	if age("restarting") != 0 {
		t.Errorf("a node that restarts counts as heard %s ago", age("restarting"))
	}
	if age("failed") <= m.repair.LeaseTimeout {
		t.Errorf("a node that gossip gave up on counts as heard %s ago", age("failed"))
	}
	m.since = now.Add(-lease.HeardWithin)
	if early := now.Sub(m.leases(now, nil)["failed"]); early > m.repair.LeaseTimeout {
		t.Errorf("while others are waited for, a node that gossip gave up on counts as heard %s ago", early)
	}
}

// TestJudgingWaitsForNoEndpoints: while the shard of the kubernetes Service has no majority, whoever writes its endpoints waits for long. A
// node that falls silent is found all the same.
func TestJudgingWaitsForNoEndpoints(t *testing.T) {
	host := consensustest.NewHost(t, 1)
	stored := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Annotations: map[string]string{apiAnnotation: "192.0.2.1:7443"}}}
	setNodeCondition(&stored.Status, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue})
	value, err := runtime.Encode(scheme.Codecs.LegacyCodec(corev1.SchemeGroupVersion), stored)
	if err != nil {
		t.Fatal(err)
	}
	put := store.Transaction{Ops: []store.Op{{Key: nodePrefix + "one", Value: value}}}
	if _, err := host.Propose(t.Context(), consensus.MetaShard, put); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	log, advertising, judged := slog.New(slog.DiscardHandler), make(chan struct{}, 1), make(chan string, 100)
	m := &meta{
		host: host, renewals: &renewals{}, repair: repair.Defaults(), log: log,
		commit: commitFunc(func(changes []placement.Change) {
			if node, ok := changes[0].Object.(*corev1.Node); ok && changes[0].Verb == placement.UpdateStatus {
				judged <- node.Name + " " + string(placement.NodeCondition(node, corev1.NodeReady).Status)
			}
		}),
		failed: func() map[string]bool { return nil },
		forget: func(context.Context, func(string) bool) error { return nil },
		advertise: func(ctx context.Context, _ []netip.AddrPort) error {
			select {
			case advertising <- struct{}{}:
			default:
			}
			<-ctx.Done()
			return ctx.Err()
		},
		shards: &shardKeeper{
			host: host, members: func() []membership.Member { return nil }, log: log,
			quarantined: func(membership.Member) []uint64 { return nil },
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	patience := time.After(20 * time.Second)
	select {
	case <-advertising:
	case <-patience:
		t.Fatal("the endpoints were never written")
	}
	select {
	case got := <-judged:
		if got != "one Unknown" {
			t.Errorf("judged: %s", got)
		}
	case <-patience:
		t.Error("a node that is silent was not judged while the endpoints were being written")
	}
}

// commitFunc is told what is committed, all of which succeeds.
type commitFunc func(changes []placement.Change)

func (f commitFunc) Commit(_ context.Context, changes []placement.Change) (store.Revision, error) {
	f(changes)
	return 0, nil
}

func TestClocksAreMeasuredAgainstTheMedian(t *testing.T) {
	table := &renewals{}
	now := time.Now()
	if table.verdict(table.wall.moment()).Ahead != 0 {
		t.Fatal("alone, a clock is its own median")
	}
	table.renew("self", now, 0, nil)
	table.renew("b", now, -3*time.Second, nil)
	table.renew("c", now, -3*time.Second-time.Millisecond, nil)
	if got := table.verdict(table.wall.moment()).Ahead; (got - 3*time.Second).Abs() > time.Second {
		t.Fatalf("two clocks agree that this one is 3 s ahead, it thinks %s", got)
	}
	// A clock's age counts from when it was told, so what agrees does so up to the time between two calls.
	table.renew("b", now, 0, nil)
	if got := table.verdict(table.wall.moment()).Ahead; got.Abs() > time.Second {
		t.Fatalf("one clock that lags moves the median by %s", got)
	}
}

func TestOnlyTheAssignedMembersAreSettled(t *testing.T) {
	a := shardmap.Found(1, "p", "disk").Place([]shardmap.Want{{Peer: "p", Voter: true}, {Peer: "q"}}, shardmap.Members{})
	members := []consensus.Member{{Peer: "p", ReplicaID: 1, Voter: true}, {Peer: "q", ReplicaID: 2}}
	if !a.SettledIn(groupOf(members)) {
		t.Fatal("the assigned members are not settled")
	}
	for name, other := range map[string][]consensus.Member{
		"missing":      members[:1],
		"promoted":     {members[0], {Peer: "q", ReplicaID: 2, Voter: true}},
		"old replica":  {members[0], {Peer: "q", ReplicaID: 3}},
		"another peer": {members[0], {Peer: "r", ReplicaID: 2}},
	} {
		if a.SettledIn(groupOf(other)) {
			t.Errorf("%s counts as settled", name)
		}
	}
}
