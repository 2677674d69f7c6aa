package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"shoal/peer/identity"
)

const (
	kubeconfigName = "kubeconfig"

	// serverName is in every peer's certificate, so that a connection may end
	// at another peer than the one whose address the kubeconfig named.
	serverName = "kubernetes"

	// probeStagger is the head start each peer has before the next is asked too.
	probeStagger = 250 * time.Millisecond
	probeTimeout = 3 * time.Second
	dialTimeout  = 3 * time.Second
)

var errNoKubeconfig = errors.New("no kubeconfig was found: run this as root on a peer, or give one with --kubeconfig or $KUBECONFIG")

// defaultKubeconfig is the first of our kubeconfigs that this user can read;
// empty when there is none, so that kubectl looks into ~/.kube/config.
func defaultKubeconfig(dataDir string) string {
	for _, dir := range []string{dataDir, identity.DefaultDataDir} {
		path := filepath.Join(dir, kubeconfigName)
		if file, err := os.Open(path); err == nil {
			_ = file.Close()
			return path
		}
	}
	return ""
}

// useKubeconfig makes our kubeconfig the default of everything in kubectl,
// `config` included, by the environment variable that all of it honours.
func useKubeconfig(dataDir string) (restore func(), err error) {
	path := defaultKubeconfig(dataDir)
	if os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "" || path == "" {
		return func() {}, nil
	}
	if err := os.Setenv(clientcmd.RecommendedConfigPathEnvVar, path); err != nil {
		return nil, err
	}
	return func() { _ = os.Unsetenv(clientcmd.RecommendedConfigPathEnvVar) }, nil
}

// restConfig is a client configuration for our own commands, found in the same
// order as for kubectl's.
func restConfig(dataDir, explicit string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = explicit
	if explicit == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		rules.ExplicitPath = defaultKubeconfig(dataDir)
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) || errors.Is(err, fs.ErrNotExist) {
		return nil, errNoKubeconfig
	}
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return failOver(func() clientcmd.ClientConfig { return loader })(config), nil
}

// failOver returns a function that lets a client configuration reach any of
// the peers that the kubeconfig lists for the same cluster. It chooses one
// that answers, before the first request, since exec and port-forward open
// connections of their own; and it dials the others when that one goes away.
func failOver(loader func() clientcmd.ClientConfig) func(*rest.Config) *rest.Config {
	var mu sync.Mutex
	live := map[string]string{} // chosen once per command: configured host → the one that answered
	return func(config *rest.Config) *rest.Config {
		raw, err := loader().RawConfig()
		if err != nil || config.Proxy != nil || config.Insecure {
			return config
		}
		hosts := alternatives(raw, config)
		if len(hosts) < 2 {
			return config
		}
		if config.ServerName == "" {
			config.ServerName = serverName
		}
		mu.Lock()
		defer mu.Unlock()
		chosen, known := live[config.Host]
		if !known {
			chosen = firstLive(hosts, config)
			live[config.Host] = chosen
		}
		config.Host = chosen
		peers := &anyPeer{addresses: hostPorts(hosts)}
		config.Dial = peers.dial
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { return retryRefused{next, peers.refused} })
		return config
	}
}

// alternatives lists the servers of the cluster that config is for, its own
// first: those entries of the kubeconfig that trust the same CA.
func alternatives(raw clientcmdapi.Config, config *rest.Config) []string {
	hosts := []string{config.Host}
	found := false
	var names []string
	for name := range raw.Clusters {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		cluster := raw.Clusters[name]
		if !sameAuthority(cluster, config) {
			continue
		}
		found = found || cluster.Server == config.Host
		if !slices.Contains(hosts, cluster.Server) {
			hosts = append(hosts, cluster.Server)
		}
	}
	if !found { // --server named something else on purpose
		return hosts[:1]
	}
	return hosts
}

func sameAuthority(cluster *clientcmdapi.Cluster, config *rest.Config) bool {
	if len(cluster.CertificateAuthorityData) > 0 {
		return bytes.Equal(bytes.TrimSpace(cluster.CertificateAuthorityData), bytes.TrimSpace(config.CAData))
	}
	return cluster.CertificateAuthority != "" && cluster.CertificateAuthority == config.CAFile
}

// firstLive is the first server that completes a TLS handshake, asked in their
// order with a small head start each. When none does it is the configured one,
// so that the error names it.
func firstLive(hosts []string, config *rest.Config) string {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return hosts[0]
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	answered := make(chan string, len(hosts))
	failed := make(chan struct{}, len(hosts))
	for i, next := 0, 0; i < len(hosts); {
		if next < len(hosts) {
			host := hosts[next]
			next++
			go func() {
				if probe(ctx, host, tlsConfig) == nil {
					answered <- host
				} else {
					failed <- struct{}{}
				}
			}()
		}
		var headStart <-chan time.Time
		if next < len(hosts) {
			headStart = time.After(probeStagger)
		}
		select {
		case host := <-answered:
			return host
		case <-failed:
			i++
		case <-headStart:
		case <-ctx.Done():
			return hosts[0]
		}
	}
	return hosts[0]
}

func probe(ctx context.Context, host string, config *tls.Config) error {
	address := hostPorts([]string{host})
	if len(address) == 0 {
		return errors.New("not a URL")
	}
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", address[0])
	if err != nil {
		return err
	}
	return conn.Close()
}

// hostPorts turns server URLs into addresses to dial.
func hostPorts(servers []string) []string {
	var addresses []string
	for _, server := range servers {
		parsed, err := url.Parse(server)
		if err != nil || parsed.Hostname() == "" {
			continue
		}
		port := parsed.Port()
		if port == "" {
			port = "443"
		}
		addresses = append(addresses, net.JoinHostPort(parsed.Hostname(), port))
	}
	return addresses
}

// anyPeer dials one of several peers that are as good as each other.
type anyPeer struct {
	addresses []string

	lock    sync.Mutex
	last    string // that answered last
	leaving string // whose handshake failed last: the others are dialled before it
}

// dial dials the wanted address, or the one that last answered in its place, and after a failure every other one.
func (p *anyPeer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	if !slices.Contains(p.addresses, address) {
		return dialer.DialContext(ctx, network, address)
	}
	var first error
	for _, candidate := range p.order(address) {
		conn, err := dialer.DialContext(ctx, network, candidate)
		if err == nil {
			p.lock.Lock()
			p.last = candidate
			p.lock.Unlock()
			return conn, nil
		}
		if first == nil || candidate == address {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// order is the one in which the addresses are dialled.
func (p *anyPeer) order(wanted string) []string {
	p.lock.Lock()
	defer p.lock.Unlock()
	var order []string
	for _, candidate := range slices.Concat([]string{p.last, wanted}, p.addresses) {
		if candidate != "" && candidate != p.leaving && !slices.Contains(order, candidate) {
			order = append(order, candidate)
		}
	}
	if p.leaving != "" {
		order = append(order, p.leaving)
	}
	return order
}

// refused takes in that the peer which was dialled last let nobody in.
func (p *anyPeer) refused() {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.leaving, p.last = p.last, ""
}
