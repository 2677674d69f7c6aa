package peer

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/consensus"
	"shoal/peer/admin"
)

func TestDescribeShard(t *testing.T) {
	voter := func(peer string, id uint64) consensus.Member {
		return consensus.Member{Peer: peer, ReplicaID: id, Voter: true}
	}
	copyOn := func(peer string, id uint64) consensus.Member { return consensus.Member{Peer: peer, ReplicaID: id} }
	trio := []consensus.Member{voter("a", 1), voter("b", 2), voter("c", 3)}
	for _, test := range []struct {
		name    string
		status  consensus.ShardStatus
		alive   string
		missing string
		lost    bool
		moves   string
	}{
		{"all is well", consensus.ShardStatus{Leader: "a", Members: trio, Assigned: trio}, "a b c", "", false, ""},
		{"one is away", consensus.ShardStatus{Leader: "a", Members: trio, Assigned: trio}, "a b", "c", false, ""},
		{"two are away", consensus.ShardStatus{Members: trio, Assigned: trio}, "a", "b c", true, ""},
		{"two look away, and yet it is led", consensus.ShardStatus{Leader: "a", Members: trio}, "a", "b c", false, ""},
		{"no leader yet", consensus.ShardStatus{Members: trio, Assigned: trio}, "a b", "c", false, ""},
		{
			"a move begins", consensus.ShardStatus{Leader: "a", Members: trio, Assigned: []consensus.Member{trio[0], trio[1], voter("d", 4)}},
			"a b c d", "", false, "D gets a copy; C gives its copy up",
		},
		{
			"a move goes on", consensus.ShardStatus{
				Leader: "a", Members: append(slices.Clone(trio), copyOn("d", 4)), Assigned: []consensus.Member{trio[0], trio[1], voter("d", 4)},
			},
			"a b c d", "", false, "D catches up, then votes; C gives its copy up",
		},
	} {
		alive := map[string]bool{}
		for _, id := range strings.Fields(test.alive) {
			alive[id] = true
		}
		got := describeShard(test.status, alive, strings.ToUpper)
		if strings.Join(got.Missing, " ") != test.missing || got.Lost != test.lost || strings.Join(got.Moves, "; ") != test.moves {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}

// TestProblemsOf: what keeps a shard from working is said once, and replicas that others left stopped are named, whatever else there is.
func TestProblemsOf(t *testing.T) {
	for _, test := range []struct {
		name  string
		shard admin.ShardStatus
		want  string
	}{
		{"all is well", admin.ShardStatus{Leader: "a"}, ""},
		{"quarantined here", admin.ShardStatus{Shard: 3, Leader: "a", Quarantine: "it broke"}, "shard 3: the replica here is quarantined: it broke"},
		{
			"quarantined on others", admin.ShardStatus{Shard: 3, Leader: "a", Quarantined: map[string]string{"c": "it broke", "b": "so did this"}},
			"shard 3: the replica on B is quarantined: so did this | shard 3: the replica on C is quarantined: it broke",
		},
		{
			"quarantined on another, and so without a leader", admin.ShardStatus{Shard: 3, Quarantined: map[string]string{"c": "it broke"}},
			"shard 3 has no leader that this peer knows of | shard 3: the replica on C is quarantined: it broke",
		},
		{
			"without a quorum", admin.ShardStatus{Shard: 3, Lost: true, Voters: []string{"a", "b", "c"}, Missing: []string{"c", "b"}},
			"shard 3 has no quorum: B, C of its 3 voters are missing (if they cannot come back: peer recover)",
		},
	} {
		if got := strings.Join(problemsOf(test.shard, strings.ToUpper), " | "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A host that comes back under the name of a node of a restored cluster gets what users had written there, and nothing else of it.
func TestInherit(t *testing.T) {
	former := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "n", UID: "old", Labels: map[string]string{"disk": "fast", corev1.LabelTopologyZone: "old"},
			Annotations: map[string]string{peerAnnotation: "old", "note": "kept"},
		},
		Spec: corev1.NodeSpec{
			PodCIDR: "10.0.0.0/24", Unschedulable: true,
			Taints: []corev1.Taint{{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}, {Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}},
		},
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "new"}, Annotations: map[string]string{peerAnnotation: "new"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.0.1.0/24"},
	}
	got := inherit(node, former)
	if got.Labels["disk"] != "fast" || got.Labels[corev1.LabelTopologyZone] != "new" || got.Annotations[peerAnnotation] != "new" || got.Annotations["note"] != "kept" {
		t.Errorf("metadata: %+v", got.ObjectMeta)
	}
	if len(got.Spec.Taints) != 1 || got.Spec.Taints[0].Key != "dedicated" || !got.Spec.Unschedulable || got.Spec.PodCIDR != "10.0.1.0/24" || got.UID != "" {
		t.Errorf("spec: %+v", got.Spec)
	}
	if got := inherit(node, nil); got != node {
		t.Errorf("without a former node: %+v", got)
	}
}
