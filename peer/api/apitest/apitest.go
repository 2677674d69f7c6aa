// Package apitest starts a whole Kubernetes API for tests: the server over a real store of one peer, behind TLS on
// loopback, with clients and kubectl.
package apitest

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/peer/api"
	"shoal/peer/identity"
)

// ServiceCIDR is the range of ClusterIPs of test clusters.
var ServiceCIDR = netip.MustParsePrefix("10.96.0.0/16")

// Cluster is a running API.
type Cluster struct {
	Host     *consensus.Host
	Server   *api.Server
	Identity *identity.Cluster
	URL      string
	AuditLog string
	// Built and Ready are how long New took, and how long it was until /readyz said yes.
	Built, Ready time.Duration

	dir    string
	ca     []byte
	config api.Config
	stop   []func() error
}

// dataShards is how many a cluster has if nobody says.
const dataShards = 2

// Start starts a cluster of two data shards whose files are in dir. change may alter the configuration; it may be nil.
func Start(dir string, change func(*api.Config)) (*Cluster, error) {
	return StartSharded(dir, dataShards, change)
}

// StartSharded is Start with that many data shards.
func StartSharded(dir string, dataShards int, change func(*api.Config)) (_ *Cluster, err error) {
	c := &Cluster{dir: dir, AuditLog: filepath.Join(dir, "audit", "audit.log")}
	defer func() {
		if err != nil {
			_ = c.Stop()
		}
	}()
	listener := httptest.NewUnstartedServer(nil)
	c.onStop(func() error { listener.Close(); return nil })
	if c.Identity, err = identity.Found(time.Now(), netip.MustParsePrefix("10.32.0.0/12"), ServiceCIDR); err != nil {
		return nil, err
	}
	config := api.Config{
		PeerName:          "here",
		AdvertiseAddress:  netip.AddrPortFrom(netip.MustParseAddr("192.0.2.10"), 7443),
		ServiceCIDR:       ServiceCIDR,
		ClientCA:          c.Identity.CAPEM(),
		ServiceAccountKey: c.Identity.ServiceAccountKey,
		EncryptionKey:     c.Identity.EncryptionKey,
		AuditLog:          c.AuditLog,
		Logger:            slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if c.Host, err = c.openHost(dataShards); err != nil {
		return nil, err
	}
	config.Host = c.Host
	if change != nil {
		change(&config)
	}
	c.config = config
	if c.Server, c.Built, c.Ready, err = c.startServer(); err != nil {
		return nil, err
	}

	listener.Config.Handler = c.Server.Handler()
	listener.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.Identity.CAPool()}
	listener.EnableHTTP2 = true
	listener.StartTLS()
	c.URL = listener.URL
	c.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: listener.Certificate().Raw})
	return c, nil
}

// openHost founds a store of one peer.
func (c *Cluster) openHost(dataShards int) (*consensus.Host, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	config := consensustest.NewNetwork().Config("peer-a", filepath.Join(c.dir, "store"))
	config.DataShards = dataShards
	host, err := consensus.Open(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	c.onStop(func() error {
		// nobody waits for a hand-over at the end of a test
		over, cancel := context.WithCancel(context.Background())
		cancel()
		return host.Shutdown(over)
	})
	if err := host.Found(ctx); err != nil {
		return nil, fmt.Errorf("found the store: %w", err)
	}
	return host, nil
}

// Another starts a second server over the same store, as another peer would.
func (c *Cluster) Another() (*api.Server, error) {
	c.config.AuditLog = ""
	server, _, _, err := c.startServer()
	return server, err
}

func (c *Cluster) startServer() (_ *api.Server, built, ready time.Duration, _ error) {
	ctx, cancel := context.WithCancel(context.Background())
	begin := time.Now()
	server, err := api.New(ctx, c.config)
	if err != nil {
		cancel()
		return nil, 0, 0, err
	}
	built = time.Since(begin)
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	c.onStop(func() error { cancel(); return <-done })

	limit, stopWaiting := context.WithTimeout(ctx, 30*time.Second)
	defer stopWaiting()
	if err := server.WaitReady(limit); err != nil {
		return nil, 0, 0, err
	}
	return server, built, time.Since(begin), nil
}

func (c *Cluster) onStop(f func() error) { c.stop = append(c.stop, f) }

// Stop ends everything, last started first, and returns the first error.
func (c *Cluster) Stop() error {
	var first error
	for i := len(c.stop) - 1; i >= 0; i-- {
		if err := c.stop[i](); err != nil && first == nil {
			first = err
		}
	}
	c.stop = nil
	return first
}

// Remote configures a client that comes over TLS with a certificate for the user. An empty name is anonymous.
func (c *Cluster) Remote(name string, groups ...string) (*rest.Config, error) {
	config := &rest.Config{Host: c.URL, TLSClientConfig: rest.TLSClientConfig{CAData: c.ca}, QPS: -1}
	if name == "" {
		return config, nil
	}
	var err error
	config.CertData, config.KeyData, err = c.Identity.Client(time.Now(), time.Hour, name, groups...)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	return config, nil
}
