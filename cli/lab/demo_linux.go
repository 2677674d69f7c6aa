package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"shoal/examples"
)

// Demo shows the main job on a running lab: an image, a Deployment and its Service, every way to reach it, and the loss of a peer.
type Demo struct {
	Lab *Lab
	// Out takes tables and sentences for people.
	Out io.Writer
	// WebAddress is where the host reaches the demo's Service; empty means 127.0.0.1:8080.
	WebAddress string

	client  kubernetes.Interface
	vip     netip.Addr
	gateway *Peer
	web     *forwarder
	answers string // of the Service, from wherever it was asked
}

// serviceCIDR is where Services live in a lab, which changes no defaults.
var serviceCIDR = netip.MustParsePrefix("10.96.0.0/16")

// Run goes through the demo. The Service stays reachable from the host until Close.
func (d *Demo) Run(ctx context.Context) error {
	if err := d.Prepare(ctx); err != nil {
		return err
	}
	fmt.Fprint(d.Out, d.answers)
	if err := d.show(ctx, "get", "nodes", "-o", "wide"); err != nil {
		return err
	}
	if err := d.show(ctx, "get", "deployments,pods,services", "-l", "app=web", "-o", "wide"); err != nil {
		return err
	}
	if len(d.Lab.Peers) == 1 {
		fmt.Fprintln(d.Out, "\nOne peer: there is no other that could take over, so none is killed. Try --peers 3.")
		return nil
	}
	return d.losePeer(ctx)
}

// Prepare brings the Deployment and its Service up and reaches it from everywhere.
func (d *Demo) Prepare(ctx context.Context) error {
	if d.WebAddress == "" {
		d.WebAddress = "127.0.0.1:8080"
	}
	steps := []struct {
		name string
		work func(context.Context) error
	}{
		{"build the demo's image from examples/web and load it on every peer", d.loadImage},
		{"apply examples/web.yaml", d.apply},
		{"wait for three ready pods", d.awaitReady},
		{"reach the Service from a client, a pod and the host", d.reach},
	}
	var err error
	if d.client, err = d.Lab.Client(); err != nil {
		return err
	}
	for _, step := range steps {
		if err := d.Lab.step(step.name, func() error { return step.work(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the forwarder to the Service.
func (d *Demo) Close() error {
	if d.web == nil {
		return nil
	}
	return d.web.close()
}

// Client talks to the lab's first peer that answers.
func (l *Lab) Client() (kubernetes.Interface, error) { return l.clientFor(0) }

func (l *Lab) clientFor(n int) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Host, config.QPS, config.Burst = l.Peers[n].API, -1, -1
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}

// Config is for a client that speaks to one peer from inside that peer's own namespace, without a forwarder between, and has no limit of
// its own.
func (l *Lab) Config(n int) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Host, config.QPS, config.Burst = "https://"+net.JoinHostPort(l.Peers[n].Address, apiPort), -1, -1
	config.Dial = l.Peers[n].host.dial
	return config, nil
}

func (d *Demo) loadImage(ctx context.Context) error {
	_, err := d.Lab.LoadWebImage(ctx)
	return err
}

// LoadWebImage builds the demo's image, imports it on every peer and returns the tarball. The server inside it lies beside the tarball, as
// "web": the image holds nothing else.
func (l *Lab) LoadWebImage(ctx context.Context) (archive string, err error) {
	if archive, err = buildWebImage(ctx, l.Dir); err != nil {
		return "", err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, peer := range l.Peers {
		group.Go(func() error {
			_, err := peer.Command(ctx, "image", "import", archive)
			return err
		})
	}
	return archive, group.Wait()
}

func (d *Demo) apply(ctx context.Context) error {
	manifest := filepath.Join(d.Lab.Dir, "web.yaml")
	if err := os.WriteFile(manifest, examples.WebManifest, 0o600); err != nil {
		return err
	}
	_, err := d.kubectl(ctx, "apply", "-f", manifest)
	return err
}

// kubectl runs a verb of our own binary on the host, with the lab's kubeconfig.
func (d *Demo) kubectl(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, d.Lab.cfg.Binary, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+d.Lab.Kubeconfig)
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("peer %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func (d *Demo) show(ctx context.Context, args ...string) error {
	out, err := d.kubectl(ctx, args...)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(d.Out, "\n$ peer %s\n%s", strings.Join(args, " "), out)
	return err
}

func (d *Demo) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var last string
	for {
		web, err := d.client.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
		switch {
		case err != nil:
			last = err.Error()
		case web.Status.ReadyReplicas == *web.Spec.Replicas && web.Status.ObservedGeneration >= web.Generation:
			return nil
		default:
			last = fmt.Sprintf("%d of %d pods are ready", web.Status.ReadyReplicas, *web.Spec.Replicas)
		}
		select {
		case <-ctx.Done():
			events, _ := d.kubectl(context.WithoutCancel(ctx), "describe", "pods", "-l", "app=web")
			return fmt.Errorf("the Deployment did not become ready: %s\n%s", last, events)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *Demo) reach(ctx context.Context) error {
	service, err := d.client.CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if d.vip, err = netip.ParseAddr(service.Spec.ClusterIP); err != nil {
		return fmt.Errorf("the Service has no virtual IP: %w", err)
	}
	d.gateway = d.Lab.Peers[0]
	if err := d.Lab.client.route(serviceCIDR, d.gateway.host.address); err != nil {
		return fmt.Errorf("routing the client to the Services: %w", err)
	}
	fromClient, err := d.fetch(ctx, 5*time.Second)
	if err != nil {
		return fmt.Errorf("from a client outside of the cluster: %w", err)
	}
	fromPod, err := d.kubectl(ctx, "exec", "deploy/web", "--", "/web", "get", "http://web.default.svc.cluster.local/")
	if err != nil {
		return fmt.Errorf("from another pod: %w", err)
	}
	if d.web, err = newForwarder(d.WebAddress, d.dialService); err != nil {
		return fmt.Errorf("%w: choose another with --web-address", err)
	}
	fromHost, err := fetchFrom(ctx, &net.Dialer{}, "http://"+d.web.address()+"/")
	if err != nil {
		return fmt.Errorf("from the host: %w", err)
	}
	d.answers = fmt.Sprintf("\n  %-60s %s  %-60s %s  %-60s %s",
		"from a client, http://"+d.vip.String()+"/", fromClient, "from a pod, http://web.default.svc.cluster.local/", fromPod,
		"from the host, http://"+d.web.address()+"/", fromHost)
	return nil
}

// dialService reaches the Service's virtual IP from the first peer that is alive.
func (d *Demo) dialService(ctx context.Context) (net.Conn, error) {
	for _, peer := range d.Lab.Peers {
		if peer.Pid() != 0 {
			return peer.host.dial(ctx, "tcp", net.JoinHostPort(d.vip.String(), "80"))
		}
	}
	return nil, errors.New("no peer is alive")
}

// fetch asks the Service once from the client's namespace, over a new connection.
func (d *Demo) fetch(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fetchFrom(ctx, dialerFunc(d.Lab.client.dial), "http://"+d.vip.String()+"/")
}

type dialerFunc func(ctx context.Context, network, address string) (net.Conn, error)

// DialContext makes a function a dialer.
func (f dialerFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

func fetchFrom(ctx context.Context, dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}, url string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", url, response.Status)
	}
	return string(body), err
}

// Victim is the peer to kill, with the web pods that will be lost: one with a web pod, and not the one whose routes the client uses, because the loss of a router is not
// what the demo shows.
func (d *Demo) Victim(ctx context.Context) (*Peer, []corev1.Pod, error) {
	pods, err := d.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		return nil, nil, err
	}
	for n := len(d.Lab.Peers) - 1; n > 0; n-- {
		peer := d.Lab.Peers[n]
		var lost []corev1.Pod
		for _, pod := range pods.Items {
			if pod.Spec.NodeName == peer.Name {
				lost = append(lost, pod)
			}
		}
		if len(lost) > 0 {
			return peer, lost, nil
		}
	}
	return nil, nil, errors.New("no web pod runs on a peer that could be killed")
}
