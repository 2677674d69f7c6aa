package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// converged says what is not as it should be when nothing is wrong any more; nil when all is.
func (r *run) converged(ctx context.Context) error {
	for _, m := range r.machines() {
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
	if err := r.shardsWork(ctx, r.machines()); err != nil {
		return err
	}
	return r.users.answer(ctx, r.machines())
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
	works := map[string]bool{}
	for _, machine := range r.machines() {
		works[machine.Name] = true
	}
	for _, node := range nodes.Items {
		if ready := isReady(node.Status.Conditions); ready != works[node.Name] {
			return fmt.Errorf("node %s: ready is %t", node.Name, ready)
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
	for _, machine := range r.machines() {
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
	voters := min(votersWanted, len(r.fleet.Machines()))
	for _, shard := range status.Shards {
		if shard.Leader == "" || r.core == nil && (len(shard.Voters) != voters || len(shard.NonVoters) != 0) {
			return fmt.Errorf("shard %d: leader %q, voters %v, others %v", shard.Shard, shard.Leader, shard.Voters, shard.NonVoters)
		}
	}
	return nil
}
