package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/consensus"
	"shoal/consensus/shardmap"
)

// TestALostShardHoldsUpOnlyItsOwn: a node that was cut off, and had to stop its StatefulSets' pods, is back, and a shard has lost its majority
// meanwhile. The node is ready and stays so, and runs the pods of all other shards again.
func TestALostShardHoldsUpOnlyItsOwn(t *testing.T) {
	workload := Workload{Namespaces: 6, Deployment: 1, StatefulSet: 5}
	var killed []*Machine
	fault := Fault{
		Name:     "cut one off, and kill a majority of a shard",
		machines: func(all []*Machine) []*Machine { return all },
		begin: func(f *Fleet, _ []*Machine) {
			var cut *Machine
			var err error
			if cut, killed, err = oneToCut(f); err != nil {
				t.Error(err)
				return
			}
			had := cut.identities()
			f.Isolate(cut, true)
			for _, m := range killed {
				f.Kill(m)
			}
			time.Sleep(9500 * time.Millisecond)
			if left := cut.identities(); len(had) == 0 || len(left) > 0 {
				t.Errorf("of %v there run %v on the machine that is cut off", had, left)
			}
			f.Isolate(cut, false)
			if err := workload.comesBack(f, cut); err != nil {
				t.Errorf("on %s, which is back: %v", cut.Name, err)
			}
		},
		end: func(f *Fleet, _ []*Machine) {
			for _, m := range killed {
				f.Start(m)
			}
		},
	}
	play(t, Plan{
		Seed: 1, Peers: 5, Workload: workload, Faults: []Fault{fault}, For: time.Second, Settle: time.Minute,
		Users: Users{MinPerMinute: 30},
	})
}

// oneToCut finds a machine that has no replica of the meta shard, and two whose loss leaves that shard a majority and another one none: if it
// can be, the one of the namespace default, which every node and the meta shard's leader have to do with.
func oneToCut(f *Fleet) (cut *Machine, killed []*Machine, err error) {
	special, err := f.shardOf(metav1.NamespaceDefault)
	if err != nil {
		return nil, nil, err
	}
	voters := f.voters()
	meta := voters[consensus.MetaShard]
	for _, shard := range append([]uint64{special}, slices.Sorted(maps.Keys(voters))...) {
		for _, cut := range f.Machines() {
			killed := slices.DeleteFunc(slices.Clone(voters[shard]), func(m *Machine) bool { return m == cut })
			inMeta := slices.DeleteFunc(slices.Clone(killed), func(m *Machine) bool { return !slices.Contains(meta, m) })
			if !slices.Contains(meta, cut) && len(killed) == 2 && len(inMeta) < 2 {
				return cut, killed, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("no shard has voters as wanted, beside those of the meta shard %s", namesOf(meta))
}

// shardOf is the shard of a namespace.
func (f *Fleet) shardOf(namespace string) (uint64, error) {
	for _, m := range f.Machines() {
		inside, ok := f.Inside(m)
		if !ok {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		kv, found, _, err := inside.Store.Get(ctx, consensus.MetaShard, shardmap.NamespaceKey(namespace), consensus.Local)
		cancel()
		if err != nil {
			return 0, err
		}
		if _, shard, ok := shardmap.DecodeNamespace(kv.Key, kv.Value); found && ok {
			return shard, nil
		}
	}
	return 0, fmt.Errorf("nobody knows the shard of namespace %s", namespace)
}

// comesBack waits until the pods of all shards that have a majority run again on a machine, and looks on for ten seconds while its node has to
// be ready.
func (w Workload) comesBack(f *Fleet, m *Machine) error {
	client, err := f.Client(m)
	if err != nil {
		return err
	}
	defer closeIdle(client)
	for begun := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		if err = errors.Join(nodeReady(client, m.Name), w.runThere(client, m)); err == nil {
			break
		}
		if time.Since(begun) > 20*time.Second {
			return err
		}
	}
	for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(250 * time.Millisecond) {
		if err := nodeReady(client, m.Name); err != nil {
			return fmt.Errorf("after all was well: %w", err)
		}
	}
	return nil
}

// runThere says which StatefulSets' pods of a machine do not run there, of the shards that answer, of which there must be some.
func (w Workload) runThere(client kubernetes.Interface, m *Machine) error {
	runs, wanted, missing := m.identities(), make([]int, w.Namespaces), make([]error, w.Namespaces)
	var all sync.WaitGroup
	for i := range w.Namespaces {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			pods, err := client.CoreV1().Pods(w.namespace(i)).List(ctx, metav1.ListOptions{LabelSelector: "app=db"})
			if err != nil {
				return // its shard has no majority
			}
			for _, pod := range pods.Items {
				if pod.Spec.NodeName != m.Name {
					continue
				}
				wanted[i]++
				if name := pod.Namespace + "/" + pod.Name; !slices.Contains(runs, name) {
					missing[i] = fmt.Errorf("%s does not run; %v do; it is %s %+v", name, runs, pod.Status.Phase, pod.Status.ContainerStatuses)
				}
			}
		})
	}
	all.Wait()
	if slices.Max(wanted) == 0 {
		return errors.New("no shard answers")
	}
	return errors.Join(missing...)
}

func nodeReady(client kubernetes.Interface, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready", name)
}
