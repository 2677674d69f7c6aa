package pods

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probeOutput bounds what is kept of a probe's output.
const probeOutput = 10 << 10

// prober executes probe and hook handlers against containers, from the node.
type prober struct {
	dial DialFunc
	exec func(ctx context.Context, id string, command []string, stdio Stdio) (int, error)
}

// probe runs a probe once. A nil error is success; the error's text is what the event says.
func (p prober) probe(ctx context.Context, pod *corev1.Pod, id string, c *corev1.Container, probe *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout(probe))
	defer cancel()
	switch h := probe.ProbeHandler; {
	case h.Exec != nil:
		return p.execIn(ctx, id, h.Exec.Command)
	case h.HTTPGet != nil:
		return p.httpGet(ctx, pod, c, h.HTTPGet, "kube-probe/1.37")
	case h.TCPSocket != nil:
		return p.tcp(ctx, pod, c, h.TCPSocket.Host, h.TCPSocket.Port)
	case h.GRPC != nil:
		return p.grpc(ctx, net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(h.GRPC.Port))), h.GRPC.Service)
	}
	return errors.New("the probe has no handler")
}

// hook runs a lifecycle handler.
func (p prober) hook(ctx context.Context, pod *corev1.Pod, id string, c *corev1.Container, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		return p.execIn(ctx, id, h.Exec.Command)
	case h.HTTPGet != nil:
		return p.httpGet(ctx, pod, c, h.HTTPGet, "kube-lifecycle/1.37")
	case h.TCPSocket != nil:
		return p.tcp(ctx, pod, c, h.TCPSocket.Host, h.TCPSocket.Port)
	case h.Sleep != nil:
		select {
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("the hook has no handler")
}

func (p prober) execIn(ctx context.Context, id string, command []string) error {
	out := &boundedBuffer{most: probeOutput}
	code, err := p.exec(ctx, id, command, Stdio{Out: out, Err: out})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("command timed out: %q", strings.Join(command, " "))
	case err != nil:
		return err
	case code != 0:
		return errors.New(orText(strings.TrimSpace(out.String()), fmt.Sprintf("command %q exited with %d", strings.Join(command, " "), code)))
	}
	return nil
}

// boundedBuffer keeps the first bytes written to it.
type boundedBuffer struct {
	bytes.Buffer
	most int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := b.most - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// httpGet succeeds for a status from 200 to 399. Redirects to the same host are followed; to another they count as success.
func (p prober) httpGet(ctx context.Context, pod *corev1.Pod, c *corev1.Container, get *corev1.HTTPGetAction, agent string) error {
	port, err := portNumber(c, get.Port)
	if err != nil {
		return err
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme = strings.ToLower(orText(string(get.Scheme), "http"))
	u.Host = net.JoinHostPort(orText(get.Host, pod.Status.PodIP), strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", agent)
	req.Header.Set("Accept", "*/*")
	for _, h := range get.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		if strings.EqualFold(h.Name, "Accept") || strings.EqualFold(h.Name, "User-Agent") {
			req.Header.Del(h.Name)
		}
		req.Header.Add(h.Name, h.Value)
	}
	resp, err := p.client(u.Hostname()).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, probeOutput))
	if err != nil {
		return err
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d: %s", resp.StatusCode, strings.TrimSpace(string(body[:min(len(body), 200)])))
	}
	return nil
}

// client is made for each probe, so that no connection outlives it. Certificates are not checked: the probe asks whether it answers.
func (p prober) client(host string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:       p.dial,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as Kubernetes documents for HTTPS probes
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Hostname() != host || len(via) >= 10 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
}

func (p prober) tcp(ctx context.Context, pod *corev1.Pod, c *corev1.Container, host string, port intstr.IntOrString) error {
	number, err := portNumber(c, port)
	if err != nil {
		return err
	}
	conn, err := p.dial(ctx, "tcp", net.JoinHostPort(orText(host, pod.Status.PodIP), strconv.Itoa(number)))
	if err != nil {
		return err
	}
	return conn.Close()
}

// grpc asks the standard health service. https://github.com/grpc/grpc/blob/master/doc/health-checking.md
func (p prober) grpc(ctx context.Context, address string, service *string) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.37"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.dial(ctx, "tcp", addr) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	request := &healthpb.HealthCheckRequest{}
	if service != nil {
		request.Service = *service
	}
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, request)
	if err != nil {
		return fmt.Errorf("health rpc failed: %w", err)
	}
	if answer.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", answer.Status)
	}
	return nil
}

// portNumber resolves a probe's port, which may be the name of one of the container's.
func portNumber(c *corev1.Container, port intstr.IntOrString) (int, error) {
	if port.Type == intstr.Int {
		if n := port.IntValue(); n > 0 && n < 65536 {
			return n, nil
		}
		return 0, fmt.Errorf("port %s is out of range", port.String())
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return int(p.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(port.StrVal); err == nil && n > 0 && n < 65536 {
		return n, nil
	}
	return 0, fmt.Errorf("container %q has no port named %q", c.Name, port.StrVal)
}
