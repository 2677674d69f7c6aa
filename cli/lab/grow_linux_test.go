package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/peer/admin"
)

// growVoters is what the founder is told to found the cluster with.
const growVoters = 5

// growPeers is how many peers TestGrowAndShrink goes up to: 2, 3, 5 or 9. Nine need the machine for themselves.
var growPeers = flag.Int("grow.peers", 5, "peers that TestGrowAndShrink goes up to: 2, 3, 5 or 9")

// TestGrowAndShrink takes a cluster from one peer to many and back, by nothing but `peer join` and `peer leave`. Meanwhile clients create,
// read and list through every peer that stays, an administrator uses kubectl's verbs on the first host, and one watch sees everything. No
// request may fail, no shard may have fewer voters than before unless there are not peers enough, and what was written is there in the end.
func TestGrowAndShrink(t *testing.T) {
	t.Parallel() // much of its time is waiting
	up := []int{1, 2, 3, 5, 9}
	most := slices.Index(up, *growPeers)
	if most < 1 {
		t.Fatalf("-grow.peers %d is none of %v", *growPeers, up[1:])
	}
	up = up[:most+1]
	down := slices.Clone(up[:len(up)-1])
	slices.Reverse(down)
	c := openCluster(t, 1, "--voters", fmt.Sprint(growVoters))
	c.cfg.JoinArgs = nil // only a founder is told
	g := &growth{cluster: c, made: map[string]bool{}}
	g.begin(t)
	for _, size := range slices.Concat(up[1:], down) {
		begun := time.Now()
		if more := size - len(g.stay); more > 0 {
			g.grow(t, more)
		}
		for len(g.stay) > size {
			g.shrink(t)
		}
		commands := time.Since(begun)
		spread := g.settle(t, size)
		t.Logf("%d peers: the commands took %.1f s, after %.1f s all was in its place: %s", size, commands.Seconds(), time.Since(begun).Seconds(), spread)
	}
	g.end(t)
}

// growth is a cluster that changes its size, with those who use it.
type growth struct {
	*cluster
	namespaces []string

	// stay are the peers that are members and will be for a while, with a client for each. Who uses one holds the lock for reading.
	lock    sync.RWMutex
	stay    []*Peer
	clients []kubernetes.Interface
	// floor is how many voters each shard has to have at the moment.
	floor int

	// made are the objects that were confirmed, seen those that the watch has shown.
	objects    sync.Mutex
	made, seen map[string]bool

	// progress is how often a leaving peer has said how many replicas it still had. One leave may be over before it can say so.
	progress int

	users   []*requester
	watcher *requester
}

// votersOn is how many voters a shard has on so many peers, growVoters where that is possible.
func votersOn(peers int) int {
	switch {
	case peers < 3:
		return 1
	case peers < growVoters:
		return 3
	}
	return growVoters
}

// begin lets the users begin.
func (g *growth) begin(t *testing.T) {
	g.stay, g.clients, g.floor, g.seen = g.Peers, []kubernetes.Interface{g.through(t, 0, requestTimeout)}, 1, map[string]bool{}
	for n := range 8 {
		name := fmt.Sprintf("grow-%d", n)
		if _, err := g.clients[0].CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		g.namespaces = append(g.namespaces, name)
	}
	g.watch(t)
	for user := range 3 {
		n := 0
		g.users = append(g.users, g.keepAsking(t, fmt.Sprintf("client %d", user), func(context.Context) error {
			n++
			return g.use(t, user, n)
		}))
	}
	n := 0
	g.users = append(g.users, g.keepAsking(t, "administrator", func(context.Context) error {
		n++
		name, namespace := fmt.Sprintf("verb-%d", n), g.namespaces[n%len(g.namespaces)]
		for _, args := range [][]string{{"create", "configmap", name, "-n", namespace}, {"get", "configmap", name, "-n", namespace}} {
			if out, err := g.Peers[0].Command(t.Context(), args...); err != nil {
				return fmt.Errorf("%w %s", err, out)
			}
		}
		g.confirm(namespace, name)
		return nil
	}))
	g.users = append(g.users, g.keepAsking(t, "voters", func(context.Context) error { return g.enoughVoters(t) }))
}

// requestTimeout is that of the clients' requests.
const requestTimeout = 30 * time.Second

// through is a client of one peer that repeats nothing by itself; a timeout of 0 is none, as a watch needs.
func (g *growth) through(t *testing.T, n int, timeout time.Duration) kubernetes.Interface {
	t.Helper()
	config, err := g.Config(n)
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = timeout
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// use creates an object through one peer, reads it through another and lists across all shards through a third.
func (g *growth) use(t *testing.T, user, n int) error {
	g.lock.RLock()
	defer g.lock.RUnlock()
	client := func(i int) kubernetes.Interface { return g.clients[(user+n+i)%len(g.clients)] }
	namespace, name := g.namespaces[(3*user+n)%len(g.namespaces)], fmt.Sprintf("object-%d-%d", user, n)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "b"}}
	ctx := context.WithoutCancel(t.Context()) // what has begun may end
	begun := time.Now()
	_, err := client(0).CoreV1().ConfigMaps(namespace).Create(ctx, object, metav1.CreateOptions{})
	if err == nil {
		g.confirm(namespace, name)
		_, err = client(1).CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	if err == nil {
		_, err = client(2).CoreV1().ConfigMaps(metav1.NamespaceAll).List(ctx, metav1.ListOptions{Limit: 5})
	}
	if err != nil {
		err = fmt.Errorf("%s/%s, begun %s before: %w", namespace, name, time.Since(begun).Round(time.Millisecond), err)
	}
	return err
}

func (g *growth) confirm(namespace, name string) {
	g.objects.Lock()
	defer g.objects.Unlock()
	g.made[namespace+"/"+name] = true
}

// watch follows all ConfigMaps through the first peer, and takes the watch up where it ended: nothing may be missing.
func (g *growth) watch(t *testing.T) {
	list, err := g.clients[0].CoreV1().ConfigMaps(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client := g.through(t, 0, 0)
	version := list.ResourceVersion
	g.watcher = g.keepAsking(t, "watch", func(ctx context.Context) error {
		w, err := client.CoreV1().ConfigMaps(metav1.NamespaceAll).Watch(ctx, metav1.ListOptions{ResourceVersion: version})
		if err != nil {
			return err
		}
		defer w.Stop()
		for event := range w.ResultChan() {
			object, ok := event.Object.(*corev1.ConfigMap)
			if !ok {
				return fmt.Errorf("%s: %+v", event.Type, event.Object)
			}
			version = object.ResourceVersion
			g.objects.Lock()
			g.seen[object.Namespace+"/"+object.Name] = true
			g.objects.Unlock()
		}
		return nil
	})
}

// enoughVoters looks at every shard's group, as the first peer knows or hears of it.
func (g *growth) enoughVoters(t *testing.T) error {
	g.lock.RLock()
	floor := g.floor
	g.lock.RUnlock()
	s, err := status(t, g.Peers[0])
	if err != nil {
		return err
	}
	g.lock.RLock()
	defer g.lock.RUnlock()
	for _, shard := range s.Shards {
		// Without a leader nobody was found who knows the group; and a floor that was lowered meanwhile counts.
		if shard.Leader != "" && len(shard.Voters) < min(floor, g.floor) {
			return fmt.Errorf("shard %d has %d voters instead of %d: %+v", shard.Shard, len(shard.Voters), min(floor, g.floor), shard)
		}
	}
	return nil
}

// grow lets so many further peers join at once.
func (g *growth) grow(t *testing.T, more int) {
	t.Helper()
	token, err := g.Peers[0].Command(t.Context(), "token", "create", "--quiet")
	if err != nil {
		t.Fatal(err)
	}
	first := len(g.stay)
	failed := make([]error, more)
	var all sync.WaitGroup
	for i := range more {
		if len(g.Peers) == first+i {
			peer, err := g.addPeer(first + i + 1)
			if err != nil {
				t.Fatal(err)
			}
			g.Peers = append(g.Peers, peer)
		}
		all.Go(func() {
			failed[i] = g.startPeer(t.Context(), g.Peers[first+i], g.Peers[0].Address, "--token", strings.TrimSpace(token))
		})
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	g.lock.Lock()
	defer g.lock.Unlock()
	for i := range more {
		g.clients = append(g.clients, g.through(t, first+i, requestTimeout))
	}
	g.stay = g.Peers[:first+more]
}

// shrink lets the last peer leave, which says what it does.
func (g *growth) shrink(t *testing.T) {
	t.Helper()
	g.lock.Lock()
	last := len(g.stay) - 1
	leaver := g.stay[last]
	g.stay, g.clients = g.stay[:last], g.clients[:last]
	if g.floor = min(g.floor, last); last < 3 {
		g.floor = 1
	}
	g.lock.Unlock()
	out, err := leaver.Command(t.Context(), "leave")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wants(t, out, "giving up shard replicas", "removing the node", "left the cluster")
	g.progress += strings.Count(out, "shard replicas are still being handed over")
	select {
	case <-leaver.Exited():
	case <-time.After(soon):
		t.Fatalf("%s has left and runs", leaver.Name)
	}
}

// settle waits until everything is where it belongs on so many peers, and says how it is spread.
func (g *growth) settle(t *testing.T, size int) (spread string) {
	t.Helper()
	voters := votersOn(size)
	eventually(t, 2*soon, fmt.Sprintf("all is in its place on %d peers", size), func(context.Context) error {
		s, err := status(t, g.Peers[0])
		if err != nil {
			return err
		}
		if err := settledOn(9, voters)(s); err != nil {
			return err
		}
		spread, err = evenly(s, size)
		return err
	})
	g.lock.Lock()
	defer g.lock.Unlock()
	g.floor = voters
	return spread
}

// evenly checks that no peer has two replicas, or leads two shards, more than another, where all could.
func evenly(s *admin.Status, size int) (string, error) {
	replicas, leads := map[string]int{}, map[string]int{}
	alive := 0
	for _, peer := range s.Peers {
		if peer.State == "alive" {
			alive++
			replicas[peer.PeerID], leads[peer.PeerID] = 0, 0
		}
	}
	if alive != size {
		return "", fmt.Errorf("%d peers are alive: %+v", alive, s.Peers)
	}
	for _, shard := range s.Shards {
		for _, peer := range slices.Concat(shard.Voters, shard.NonVoters) {
			replicas[peer]++
		}
		leads[shard.Leader]++
	}
	fewest, most := extremes(replicas)
	least, lead := extremes(leads)
	spread := fmt.Sprintf("%d voters, %d to %d replicas on each peer, %d to %d leaders", len(s.Shards[0].Voters), fewest, most, least, lead)
	// Two peers have a voter and a copy of each shard: who votes may lead.
	if most-fewest > 1 || lead-least > 1 && size != 2 || len(replicas) != size || len(leads) != size {
		return spread, fmt.Errorf("it is spread unevenly: %s: %v, %v", spread, replicas, leads)
	}
	return spread, nil
}

func extremes(counts map[string]int) (least, most int) {
	least = 1 << 30
	for _, n := range counts {
		least, most = min(least, n), max(most, n)
	}
	return least, most
}

// end lets the users end, and asks whether anything is missing.
func (g *growth) end(t *testing.T) {
	for _, user := range g.users {
		user.end(t, "through it all")
		t.Logf("asked %d times", user.asked)
	}
	list, err := g.clients[0].CoreV1().ConfigMaps(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, object := range list.Items {
		there[object.Namespace+"/"+object.Name] = true
	}
	if missing := absent(g.made, there); len(missing) > 0 {
		t.Errorf("of %d objects that were confirmed these are lost: %v", len(g.made), missing)
	}
	eventually(t, soon, "the watch has shown everything", func(context.Context) error {
		g.objects.Lock()
		defer g.objects.Unlock()
		if missing := absent(g.made, g.seen); len(missing) > 0 {
			return fmt.Errorf("of %d objects it lacks %v", len(g.made), missing)
		}
		return nil
	})
	if g.progress == 0 {
		t.Error("no leaving peer said how far it was")
	}
	g.watcher.stop()
	g.watcher.done.Wait()
	if len(g.watcher.failure) > 0 {
		t.Errorf("the watch ended:\n%s", strings.Join(g.watcher.failure, "\n"))
	}
	t.Logf("%d objects, all of them there and seen by the watch, which was taken up again %d times", len(g.made), g.watcher.asked)
}

// absent are the names that the one set has and the other has not.
func absent(wanted, there map[string]bool) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for name := range wanted {
			if !there[name] && !yield(name) {
				return
			}
		}
	})
}
