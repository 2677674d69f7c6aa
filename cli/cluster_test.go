package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"shoal/peer/identity"
)

// fakePeers are API servers with certificates of one cluster, each on a
// loopback address of its own, so that a certificate for one is wrong for
// another as it is between hosts.
type fakePeers struct {
	self       *identity.Peer
	dataDir    string
	kubeconfig string
	servers    []*httptest.Server
	requests   []*atomic.Int64
}

// startPeers founds a cluster and serves handler on n addresses.
func startPeers(t *testing.T, n int, handler http.Handler) *fakePeers {
	t.Helper()
	f := &fakePeers{dataDir: t.TempDir()}
	now := time.Now()
	cluster, err := identity.Found(now, netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("10.96.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	var endpoints []identity.Endpoint
	for i := range n {
		address := netip.AddrFrom4([4]byte{127, 0, 1, byte(10 + i)})
		dir := f.dataDir
		if i > 0 {
			dir = t.TempDir()
		}
		pending, err := identity.Prepare(dir)
		if err != nil {
			t.Fatal(err)
		}
		self, err := pending.Found(now, cluster, fmt.Sprintf("p%d", i), []netip.Addr{address})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			f.self = self
		}
		f.serve(t, self, address, handler)
		endpoints = append(endpoints, identity.Endpoint{Name: self.Name, Address: f.servers[i].Listener.Addr().String()})
	}
	text, err := cluster.Kubeconfig(now, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	f.kubeconfig = filepath.Join(f.dataDir, kubeconfigName)
	write(t, f.kubeconfig, string(text))
	t.Setenv("SHOAL_DATA_DIR", f.dataDir)
	t.Setenv("KUBECONFIG", "")
	os.Unsetenv("KUBECONFIG")
	t.Setenv("HOME", t.TempDir()) // kubectl's caches and preferences
	return f
}

func (f *fakePeers) serve(t *testing.T, self *identity.Peer, address netip.Addr, handler http.Handler) {
	t.Helper()
	listener, err := net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	count := &atomic.Int64{}
	server := &httptest.Server{Listener: listener, EnableHTTP2: true, Config: &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			count.Add(1)
			handler.ServeHTTP(w, r)
		}),
	}, TLS: &tls.Config{
		Certificates: []tls.Certificate{*self.Certificate()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(self.Cluster.CA),
	}}
	server.Config.ErrorLog = quiet
	server.StartTLS()
	t.Cleanup(server.Close)
	f.servers = append(f.servers, server)
	f.requests = append(f.requests, count)
}

func pool(ca *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca)
	return p
}
