package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/cli/bench/load"
	"shoal/cli/lab"
)

const (
	// watchers of the watches figure, and how many of them share a client.
	watchers       = 1000
	watchersClient = 100
)

// measureWatches has a thousand watches of the APIs of three peers see ConfigMaps being created in one namespace, beside a thousand watches
// of an etcd of three members that see puts of the same size. It also tells what a watch costs a peer in memory.
func measureWatches(ctx context.Context, s *session) ([]Row, error) {
	l, err := s.open(ctx, 3)
	if err != nil {
		return nil, err
	}
	span := time.Duration(s.times(15, 5)) * time.Second
	var etcd, ours load.Result
	err = s.step(fmt.Sprintf("etcd, three members: puts to %d watchers for %s", watchers, span), func() (err error) {
		etcd, err = s.etcd(ctx, span, "--watchers", strconv.Itoa(watchers))
		return err
	})
	if err != nil {
		return nil, err
	}
	var memory []float64 // KiB for each watch
	err = s.step(fmt.Sprintf("three peers: creates to %d watchers for %s", watchers, span), func() (err error) {
		ours, memory, err = fanOut(ctx, l, span)
		return err
	})
	if err != nil {
		return nil, err
	}
	return []Row{
		{
			What: fmt.Sprintf("events/s to %d watchers, three peers", watchers), Unit: "1/s", Measured: sampleOf([]float64{ours.PerSecond}),
			Against: "etcd watchers", Reference: sampleOf([]float64{etcd.PerSecond}),
		},
		{
			What: "  create → seen", Unit: "ms", Measured: Sample{P50: ours.P50, P99: ours.P99, N: ours.Count},
			Against: "etcd put → seen", Reference: Sample{P50: etcd.P50, P99: etcd.P99, N: etcd.Count},
		},
		{What: "  memory of a watch in the peer", Unit: "KiB", Measured: sampleOf(memory)},
	}, nil
}

// fanOut takes the figure of the peers. memory is, for each peer, by how much its anonymous memory has grown for each of its watches.
func fanOut(ctx context.Context, l *lab.Lab, span time.Duration) (result load.Result, memory []float64, err error) {
	const namespace = "watched"
	var clients []*kubernetes.Clientset
	for n := 0; n*watchersClient < watchers; n++ {
		api, err := client(l, n%len(l.Peers))
		if err != nil {
			return result, nil, err
		}
		clients = append(clients, api)
	}
	if err := makeNamespace(ctx, clients[0], namespace); err != nil {
		return result, nil, err
	}
	if err := seeEverywhere(ctx, clients, []string{namespace}); err != nil {
		return result, nil, err
	}
	before, err := anonymous(l)
	if err != nil {
		return result, nil, err
	}
	followers, err := watchClients(l)
	if err != nil {
		return result, nil, err
	}
	payload := strings.Repeat("v", payloadBytes)
	write := func(ctx context.Context, n int) error {
		_, err := clients[0].CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "c" + strconv.Itoa(n)}, Data: map[string]string{"value": payload},
		}, metav1.CreateOptions{})
		return err
	}
	follow := func(ctx context.Context, watcher int, ready func(), seen func(int)) error {
		err := followers[watcher/watchersClient].watch(ctx, namespace, ready, func(event metav1.WatchEvent) error {
			object, err := configMapOf(event)
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(strings.TrimPrefix(object.Name, "c"))
			if err != nil {
				return fmt.Errorf("unexpected ConfigMap %s", object.Name)
			}
			seen(n)
			return nil
		})
		return fmt.Errorf("watch %d ended: %w", watcher, err)
	}
	result, err = load.Fanout(ctx, watchers, span, write, follow, func() error {
		after, err := anonymous(l)
		for i := range after {
			memory = append(memory, (after[i]-before[i])*1024/(watchers/float64(len(after))))
		}
		return err
	})
	return result, memory, err
}

// anonymous is the peers' anonymous memory in MiB.
func anonymous(l *lab.Lab) ([]float64, error) {
	var all []float64
	for _, p := range l.Peers {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.Pid()))
		if err != nil {
			return nil, err
		}
		all = append(all, mebibytes(rollup, "Anonymous:"))
	}
	return all, nil
}
