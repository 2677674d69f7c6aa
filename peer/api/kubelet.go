package api

import (
	"context"
	"net"
	"net/http"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
)

// kubeletHost stands in URLs to a node's kubelet API. Connections are made by node name, never by this address; it
// exists because upstream refuses to proxy to a host that does not resolve to a global address (it is one of RFC 5737).
const (
	kubeletHost = "192.0.2.1"
	kubeletPort = "10250"
)

// kubelets connects to the kubelet API of nodes.
type kubelets struct {
	dial func(ctx context.Context, nodeName string) (net.Conn, error)

	mu         sync.Mutex
	transports map[types.NodeName]*http.Transport
}

func newKubelets(dial func(context.Context, string) (net.Conn, error)) *kubelets {
	return &kubelets{dial: dial, transports: map[types.NodeName]*http.Transport{}}
}

// GetConnectionInfo says how to reach a node: plain HTTP over a connection that the dialler has authenticated.
func (k *kubelets) GetConnectionInfo(_ context.Context, node types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	if k.dial == nil {
		return nil, apierrors.NewServiceUnavailable("this server has no way to reach nodes")
	}
	transport := k.transport(node)
	return &kubeletclient.ConnectionInfo{
		Scheme: "http", Hostname: kubeletHost, Port: kubeletPort,
		Transport: transport, InsecureSkipTLSVerifyTransport: transport,
	}, nil
}

func (k *kubelets) transport(node types.NodeName) *http.Transport {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t, ok := k.transports[node]; ok {
		return t
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return k.dial(ctx, string(node)) },
		// a request to a node is rare; an idle connection kept to each of thousands is not worth its memory
		DisableKeepAlives: true,
	}
	k.transports[node] = t
	return t
}
