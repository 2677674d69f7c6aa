package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/mesh/vip"
)

// Violation is a promise that was not kept.
type Violation struct {
	Checker string
	At      time.Duration // since the fleet began
	Message string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: at %.3f s: %s", v.Checker, v.At.Seconds(), v.Message)
}

// identityEvery is how often the machines are looked at for two of one identity. A container takes longer to start and stop.
const identityEvery = 5 * time.Millisecond

// watchIdentities holds that no two containers of one identity run at once, on any machines, whatever the store knows.
func (r *run) watchIdentities(ctx context.Context) {
	for pause(ctx, identityEvery) == nil {
		where := map[string]string{}
		for _, m := range r.fleet.Machines() {
			for _, pod := range m.identities() {
				if other, twice := where[pod]; twice {
					r.blame("identity", "%s runs on %s and on %s", pod, other, m.Name)
				}
				where[pod] = m.Name
			}
		}
	}
}

// watchRestarts holds that no container is restarted because something of the control plane failed: only a machine that lost its power,
// and pods that must be fenced, have reasons.
func (r *run) watchRestarts(ctx context.Context) {
	for pause(ctx, time.Second) == nil {
		for _, m := range r.fleet.Machines() {
			for _, name := range m.restarted() {
				if !r.excused(m) {
					r.blame("restarts", "%s was restarted on %s, which has never lost its power", name, m.Name)
				}
			}
		}
	}
}

// watchCapacity holds that the store never binds more to a node than it can give.
func (r *run) watchCapacity(ctx context.Context) {
	for pause(ctx, 3*time.Second) == nil {
		client, err := r.anyClient(ctx)
		if err != nil {
			continue
		}
		limit, cancel := context.WithTimeout(ctx, 5*time.Second)
		nodes, err1 := client.CoreV1().Nodes().List(limit, metav1.ListOptions{})
		pods, err2 := client.CoreV1().Pods("").List(limit, metav1.ListOptions{})
		cancel()
		if err1 != nil || err2 != nil {
			continue
		}
		r.reads.Add(2)
		for _, node := range nodes.Items {
			r.checkNode(node, pods.Items)
		}
	}
}

func (r *run) checkNode(node corev1.Node, pods []corev1.Pod) {
	memory, count := int64(0), int64(0)
	for _, pod := range pods {
		if pod.Spec.NodeName == node.Name && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			memory += pod.Spec.Containers[0].Resources.Requests.Memory().Value()
			count++
		}
	}
	if memory > node.Status.Allocatable.Memory().Value() || count > node.Status.Allocatable.Pods().Value() {
		r.blame("capacity", "%s holds %d pods with %d bytes, and can give %s and %s", node.Name, count, memory,
			node.Status.Allocatable.Pods(), node.Status.Allocatable.Memory())
	}
}

// converged says what is not as it should be when nothing is wrong any more; nil when all is.
func (r *run) converged(ctx context.Context) error {
	for _, m := range r.fleet.Machines() {
		client, err := r.fleet.Client(m)
		if err != nil {
			return err
		}
		err = r.seenFrom(ctx, m, client)
		closeIdle(client)
		if err != nil {
			return fmt.Errorf("seen from %s: %w", m.Name, err)
		}
	}
	return nil
}

func (r *run) seenFrom(ctx context.Context, m *Machine, client *kubernetes.Clientset) error {
	if err := r.plan.Workload.settled(ctx, client); err != nil {
		return err
	}
	if err := r.shardsWhole(ctx, m); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, node := range nodes.Items {
		if !isReady(node.Status.Conditions) {
			return fmt.Errorf("node %s is not ready", node.Name)
		}
	}
	for i := range r.plan.Workload.Namespaces {
		if err := r.sameEverywhere(ctx, m, client, r.plan.Workload.namespace(i)); err != nil {
			return err
		}
	}
	return nil
}

func isReady(conditions []corev1.NodeCondition) bool {
	return slices.ContainsFunc(conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// sameEverywhere compares a namespace's pods with what really runs and with where this machine's rules lead.
func (r *run) sameEverywhere(ctx context.Context, m *Machine, client kubernetes.Interface, namespace string) error {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var wanted, running, ready []string
	for _, pod := range pods.Items {
		wanted = append(wanted, pod.Name+" on "+pod.Spec.NodeName)
		if pod.Labels["app"] == "web" {
			ready = append(ready, pod.Status.PodIP+":8080")
		}
	}
	for _, machine := range r.fleet.Machines() {
		for _, name := range machine.runningIn(namespace) {
			running = append(running, name+" on "+machine.Name)
		}
	}
	if slices.Sort(wanted); !slices.Equal(wanted, sorted(running)) {
		return fmt.Errorf("namespace %s has %v, and there run %v", namespace, wanted, running)
	}
	service, err := client.CoreV1().Services(namespace).Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		return err
	}
	key, err := frontOf(service)
	if err != nil {
		return err
	}
	_, targets := m.rules.Lookup(m.Address, key)
	var leads []string
	for _, target := range targets {
		leads = append(leads, target.String())
	}
	if slices.Sort(ready); !slices.Equal(ready, sorted(leads)) {
		return fmt.Errorf("the virtual IP of %s/web leads to %v, and ready are %v", namespace, leads, ready)
	}
	return nil
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// shardsWhole holds that every shard has a leader and all the voters that it should have.
func (r *run) shardsWhole(ctx context.Context, m *Machine) error {
	status, err := r.fleet.Status(ctx, m)
	if err != nil {
		return err
	}
	voters := min(3, len(r.fleet.Machines()))
	for _, shard := range status.Shards {
		if shard.Leader == "" || len(shard.Voters) != voters || len(shard.NonVoters) != 0 {
			return fmt.Errorf("shard %d: leader %q, voters %v, others %v", shard.Shard, shard.Leader, shard.Voters, shard.NonVoters)
		}
	}
	return nil
}

// staleVIP is for how long a rule may lead to a pod that does not run any more, on a machine that hears the others.
const staleVIP = 15 * time.Second

// watchVIPs holds that no virtual IP leads for long to a pod that is gone.
func (r *run) watchVIPs(ctx context.Context) {
	since := map[string]time.Time{}
	for pause(ctx, time.Second) == nil {
		alive := map[string]bool{}
		for _, m := range r.fleet.Machines() {
			for _, address := range m.addresses() {
				alive[address] = true
			}
		}
		seen := map[string]bool{}
		for _, m := range r.fleet.Machines() {
			if r.troubled(m) {
				continue // nobody can tell it
			}
			for _, key := range r.fronts() {
				_, targets := m.rules.Lookup(m.Address, key)
				for _, target := range targets {
					if alive[target.Addr().String()] {
						continue
					}
					id := m.Name + " " + key.String() + " " + target.String()
					seen[id] = true
					if begun, known := since[id]; !known {
						since[id] = time.Now()
					} else if time.Since(begun) > staleVIP {
						r.blame("vip", "on %s the virtual IP %s has led to %s for %s after the end of its pod", m.Name, key, target, time.Since(begun))
						since[id] = time.Now()
					}
				}
			}
		}
		for id := range since {
			if !seen[id] {
				delete(since, id)
			}
		}
	}
}

func frontOf(service *corev1.Service) (vip.FrontKey, error) {
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	return vip.FrontKey{Addr: address, Protocol: vip.TCP, Port: 80}, err
}
