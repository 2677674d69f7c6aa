package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"shoal/cli/lab"
)

// measureService makes Services in front of a ready pod, and asks their virtual IP on the same peer.
func measureService(ctx context.Context, s *session) ([]Row, error) {
	return s.measureServices(ctx, 1, "Service create → VIP answers, same peer", 50)
}

// measureServiceEverywhere asks on all of three peers, and counts until the last one has answered.
func measureServiceEverywhere(ctx context.Context, s *session) ([]Row, error) {
	return s.measureServices(ctx, 3, "Service create → VIP answers, all of three peers", 150)
}

func (s *session) measureServices(ctx context.Context, peers int, what string, most float64) ([]Row, error) {
	l, err := s.openWithImage(ctx, peers)
	if err != nil {
		return nil, err
	}
	api, err := client(l, 0)
	if err != nil {
		return nil, err
	}
	pod := webPod("bench-backend", map[string]string{"app": "bench-backend"})
	// The last peer runs it: where there are several, the request and the answer cross the tunnel.
	pod.Spec.NodeName = l.Peers[peers-1].Name
	pods := api.CoreV1().Pods(metav1.NamespaceDefault)
	watcher, err := watchPods(ctx, pods)
	if err != nil {
		return nil, err
	}
	if _, err = watcher.make(ctx, pod); err != nil {
		return nil, err
	}
	watcher.stop()

	count := s.times(30, 5)
	var ours, reads []time.Duration
	err = s.step(fmt.Sprintf("%d Services", count), func() error {
		for n := range 1 + count {
			took, read, err := oneService(ctx, l, api, n)
			if err != nil {
				return err
			}
			if n > 0 { // the first opens connections
				ours, reads = append(ours, took), append(reads, read)
			}
		}
		return pods.Delete(ctx, pod.Name, metav1.DeleteOptions{})
	})
	if err != nil {
		return nil, err
	}
	return []Row{{
		What: what, Unit: "ms", Measured: milliseconds(ours),
		Against: "GET of the Service", Reference: milliseconds(reads), Aim: Aim{Most: most},
	}}, nil
}

// oneService makes a Service, waits until every peer has been answered at its virtual IP, reads it through the API and removes it.
func oneService(ctx context.Context, l *lab.Lab, api kubernetes.Interface, n int) (took, read time.Duration, err error) {
	services := api.CoreV1().Services(metav1.NamespaceDefault)
	begun := time.Now()
	made, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%d", n)},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "bench-backend"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(webPort)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, 0, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, peer := range l.Peers {
		group.Go(func() error { return awaitAnswer(groupCtx, peer, "http://"+made.Spec.ClusterIP+"/") })
	}
	if err := group.Wait(); err != nil {
		return 0, 0, err
	}
	took = time.Since(begun)
	begun = time.Now()
	if _, err := services.Get(ctx, made.Name, metav1.GetOptions{}); err != nil {
		return 0, 0, err
	}
	read = time.Since(begun)
	return took, read, services.Delete(ctx, made.Name, metav1.DeleteOptions{})
}

// Asking a virtual IP: a new connection every askPause, each of which may take askTimeout. They overlap, because a packet that was sent
// before the address was served may be lost, and is sent again only after a second.
const (
	askPause   = 5 * time.Millisecond
	askTimeout = 500 * time.Millisecond
	askLimit   = 15 * time.Second
)

// awaitAnswer returns when a URL was answered from a peer's namespace.
func awaitAnswer(ctx context.Context, peer *lab.Peer, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answered := make(chan struct{}, 1)
	last := make(chan error, 1)
	for {
		go func() {
			err := ask(ctx, peer.Dial, url)
			if err == nil {
				select {
				case answered <- struct{}{}:
				default:
				}
				return
			}
			select {
			case last <- err:
			default:
			}
		}()
		select {
		case <-answered:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer on %s within %s: %w", url, peer.Name, askLimit, <-last)
		case <-time.After(askPause):
		}
	}
}

func ask(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	return nil
}
