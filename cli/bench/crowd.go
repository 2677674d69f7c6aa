package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"shoal/cli/lab"
)

// Size of the crowd figure: pods of about 3 KB as they are stored, in a few namespaces, which lie in different shards.
const (
	crowdPods       = 100_000
	crowdPodsQuick  = 20_000
	crowdNamespaces = 16
	crowdText       = 2600
	crowdInFlight   = 64
	// crowdRest lets a peer come to rest, and its collector with it.
	crowdRest = 25 * time.Second
)

// measureCrowd fills a cluster of three with pods that nobody schedules and tells what they cost each peer: in memory at rest, at the most
// during a list of all of them, and in time to start again. The references are the same cluster before it was filled, and the data.
func measureCrowd(ctx context.Context, s *session) ([]Row, error) {
	if err := s.closeLab(); err != nil { // the memory of a peer that has done nothing yet
		return nil, err
	}
	l, err := s.open(ctx, 3)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.closeLab() }() // nobody wants to share such a lab
	pods := s.times(crowdPods, crowdPodsQuick)
	var c crowd
	steps := []struct {
		name string
		work func() error
	}{
		{"start a peer again, empty", func() (err error) { c.emptyStart, err = restarts(ctx, l, s.times(3, 1)); return err }},
		{"let them come to rest", func() (err error) { c.empty, err = atRest(ctx, l); return err }},
		{fmt.Sprintf("create %d pods of 3 KB, %d in flight", pods, crowdInFlight), func() error { return fill(ctx, l, pods) }},
		{"let them come to rest", func() (err error) { c.full, err = atRest(ctx, l); return err }},
		{"list all pods, protobuf", func() (err error) { return c.list(ctx, l, runtime.ContentTypeProtobuf, s.times(3, 1)) }},
		{"list all pods, JSON", func() (err error) { return c.list(ctx, l, runtime.ContentTypeJSON, s.times(3, 1)) }},
		{"start a peer again, full", func() (err error) { c.fullStart, err = restarts(ctx, l, s.times(3, 1)); return err }},
	}
	for _, step := range steps {
		if err := s.step(step.name, step.work); err != nil {
			return nil, err
		}
	}
	return c.rows(pods), nil
}

// crowd is what was measured.
type crowd struct {
	emptyStart, fullStart []time.Duration
	empty, full           []float64            // anonymous memory of each peer, MiB
	data                  float64              // all pods in protobuf, MiB
	peaks                 map[string][]float64 // of RSS during a list, in RSS before it, by the list's form
	times                 map[string][]float64 // of a list, seconds
}

func (c *crowd) rows(pods int) []Row {
	what := func(text string) string { return fmt.Sprintf(text, pods) }
	var grown []float64
	for i := range c.full {
		grown = append(grown, c.full[i]-c.empty[i])
	}
	rows := []Row{
		{
			What: what("memory that %d pods of 3 KB add to a peer"), Unit: "MiB", Measured: sampleOf(grown),
			Against: "the pods in protobuf", Reference: sampleOf([]float64{c.data}),
		},
		{
			What: what("start → ready with %d pods"), Unit: "s", Measured: seconds(c.fullStart),
			Against: "without", Reference: seconds(c.emptyStart), Aim: Aim{Most: 5},
		},
	}
	for _, form := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		name := strings.TrimPrefix(strings.TrimPrefix(form, "application/"), "vnd.kubernetes.")
		rows = append(rows,
			Row{What: what("most RSS in a list of %d pods, " + name), Unit: "× before it", Measured: sampleOf(c.peaks[form]), Aim: Aim{Most: 1.3}},
			Row{What: "  time of the list, " + name, Unit: "s", Measured: sampleOf(c.times[form])})
	}
	return rows
}

// atRest is the anonymous memory of the peers once nothing happens any more.
func atRest(ctx context.Context, l *lab.Lab) ([]float64, error) {
	if err := pause(ctx, crowdRest); err != nil {
		return nil, err
	}
	return anonymous(l)
}

// restarts stops and starts the last peer, which did not found the cluster.
func restarts(ctx context.Context, l *lab.Lab, times int) (took []time.Duration, err error) {
	peer := l.Peers[len(l.Peers)-1]
	for range times {
		if err := peer.Stop(ctx); err != nil {
			return nil, err
		}
		begun := time.Now()
		if err := peer.Start(); err != nil {
			return nil, err
		}
		if err := peer.Await(ctx); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begun))
		if err := awaitVoters(ctx, l); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// fill creates the pods over all peers. They name a scheduler that does not exist.
func fill(ctx context.Context, l *lab.Lab, pods int) error {
	var clients []*kubernetes.Clientset
	for n := range l.Peers {
		api, err := client(l, n)
		if err != nil {
			return err
		}
		clients = append(clients, api)
	}
	names := make([]string, crowdNamespaces)
	for i := range names {
		names[i] = fmt.Sprintf("crowd-%d", i)
		if err := makeNamespace(ctx, clients[0], names[i]); err != nil {
			return err
		}
	}
	if err := seeEverywhere(ctx, clients, names); err != nil {
		return err
	}
	if err := awaitAccounts(ctx, clients[0], names); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(crowdInFlight)
	for n := 0; n < pods && ctx.Err() == nil; n++ {
		group.Go(func() error { return makePod(ctx, clients[n%len(clients)], names[n%len(names)], n) })
	}
	return group.Wait()
}

// makePod tries several times: what counts is that the pods are there, also on a machine so busy that a shard has no leader for a moment.
func makePod(ctx context.Context, api kubernetes.Interface, namespace string, n int) error {
	for tries := 0; ; tries++ {
		_, err := api.CoreV1().Pods(namespace).Create(ctx, crowdPod(n), metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) {
			return nil
		}
		if tries == 5 {
			return err
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
}

// awaitAccounts waits for the service accounts without which there are no pods.
func awaitAccounts(ctx context.Context, api kubernetes.Interface, names []string) error {
	return wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		for _, name := range names {
			if _, err := api.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{}); err != nil {
				return false, nil // not there yet
			}
		}
		return true, nil
	})
}

func crowdPod(n int) *corev1.Pod {
	text := strings.Repeat(fmt.Sprintf("%07d ", n), crowdText/8)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%06d", n), Annotations: map[string]string{"text": text}},
		Spec:       corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{Name: "c", Image: "image"}}},
	}
}

// list has the first peer list all pods and looks at its memory.
func (c *crowd) list(ctx context.Context, l *lab.Lab, form string, times int) error {
	config, err := l.Config(0)
	if err != nil {
		return err
	}
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	if c.peaks == nil {
		c.peaks, c.times = map[string][]float64{}, map[string][]float64{}
	}
	pid := l.Peers[0].Pid()
	for range times {
		before, err := status(pid, "VmRSS:")
		if err != nil {
			return err
		}
		// From here on the kernel notes the highest RSS anew: proc_pid_clear_refs(5).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			return err
		}
		begun := time.Now()
		size, err := listAll(ctx, http, config.Host, form)
		if err != nil {
			return err
		}
		c.times[form] = append(c.times[form], time.Since(begun).Seconds())
		most, err := status(pid, "VmHWM:")
		if err != nil {
			return err
		}
		c.peaks[form] = append(c.peaks[form], most/before)
		if form == runtime.ContentTypeProtobuf {
			c.data = float64(size) / (1 << 20)
		}
		if err := pause(ctx, crowdRest); err != nil {
			return err
		}
	}
	return nil
}

func listAll(ctx context.Context, client *http.Client, host, form string) (int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/api/v1/pods", nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Accept", form)
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	size, err := io.Copy(io.Discard, response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("list of all pods: %s", response.Status)
	}
	return size, err
}

// status is a line of /proc/PID/status, in MiB.
func status(pid int, name string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return mebibytes(text, name), nil
}
