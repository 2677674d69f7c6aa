package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/consensus"
	"shoal/peer/api"
	"shoal/placement"
	"shoal/runtime/pods"
	"shoal/runtime/stats"
)

// serviceKubelet carries HTTP to a node's kubelet API.
const serviceKubelet = "shoal/kubelet"

// serveAPI builds the Kubernetes API and serves it on the peer's port.
func (p *Peer) serveAPI(ctx context.Context, group *errgroup.Group) error {
	cluster := p.self.Cluster
	server, err := api.New(ctx, api.Config{
		Host:     p.host,
		PeerName: p.self.Name, AdvertiseAddress: p.endpoint(), ServiceCIDR: cluster.ServiceCIDR,
		ClientCA: cluster.CAPEM(), ServiceAccountKey: cluster.ServiceAccountKey, EncryptionKey: cluster.EncryptionKey,
		KubeletDial: p.dialKubelet, NodeLeases: p.leases, Usage: (&usages{ask: p.askUsage}).of, AuditLog: p.cfg.auditLog(), Logger: p.log,
	})
	if err != nil {
		return err
	}
	p.api = server
	client, err := kubernetes.NewForConfig(server.Loopback())
	if err != nil {
		return err
	}
	recorders, end, err := p.recorders(ctx)
	if err != nil {
		return err
	}
	recorder := recorders("kubelet")
	p.node.events.Store(&recorder)
	p.node.client.Store(client)
	group.Go(func() error {
		defer end()
		return server.Run(ctx)
	})
	group.Go(func() error { return serveHTTP(ctx, p.link.API(), server.Handler(), p.log) })
	return nil
}

// dialKubelet reaches a node's kubelet API over the peers' port.
func (p *Peer) dialKubelet(ctx context.Context, nodeName string) (net.Conn, error) {
	for _, member := range p.members.Members() {
		if member.Name == nodeName {
			return p.link.Dial(ctx, member.PeerID, serviceKubelet)
		}
	}
	return nil, errUnknownNode(nodeName)
}

func errUnknownNode(name string) error { return fmt.Errorf("no peer is named %s", name) }

// serveNode answers what other peers ask this node.
func (p *Peer) serveNode(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	listener, err := p.link.Listen(serviceNode)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+claimsPath, answerJSON(func(_ *http.Request, in claimRequest) (claimAnswer, error) {
		return p.node.claim(ctx, in), nil
	}))
	mux.Handle("POST "+leasePath, leaseHandler(p.renewals, p.leadsMeta, func(r *http.Request) string {
		return p.nameOf(callerOf(r))
	}, p.host.Exchange))
	mux.Handle("POST "+leasePath+"/all", answerJSON(func(*http.Request, struct{}) (map[string]time.Time, error) {
		if !p.leadsMeta() {
			return nil, errNotMetaLeader
		}
		return p.renewals.snapshot(), nil
	}))
	mux.Handle("POST "+quarantinePath, quarantineHandler(p.host.Quarantined))
	mux.Handle("POST "+explainPath, p.explainHandler())
	mux.Handle("POST "+usagePath, answerJSON(func(*http.Request, struct{}) (stats.Use, error) { return p.node.stats.Use(), nil }))
	group.Go(func() error { return serveHTTP(ctx, listener, mux, p.log) })
	kubelet, err := p.link.Listen(serviceKubelet)
	if err != nil {
		return err
	}
	group.Go(func() error { return serveHTTP(ctx, kubelet, p.node.kubelet, p.log) })
	renewer := &renewer{
		host: p.host, nodes: p.nodes, self: p.self.ID, node: p.self.Name, local: p.renewals, clock: p.clock,
		fence: p.node.fence, lift: p.node.lift, broken: p.node.statusChanged, heartbeat: p.node.watchdog.renewed,
		back: func(ctx context.Context) error { return withdrawRestart(ctx, p.host, p.self.Name) }, log: p.log,
	}
	group.Go(func() error { return renewer.Run(ctx) })
	return group.Wait()
}

func (p *Peer) leadsMeta() bool {
	return p.host.Leads(consensus.MetaShard)
}

// nameOf is the node name of a peer, "" if gossip does not know it.
func (p *Peer) nameOf(peerID string) string {
	for _, member := range p.members.Members() {
		if member.PeerID == peerID {
			return member.Name
		}
	}
	return ""
}

// claimRequest asks a node for room. Shard is the shard whose leader asks.
type claimRequest struct {
	Shard  uint64       `json:"shard"`
	Claims []pods.Claim `json:"claims"`
}

// claimAnswer says yes or no to each claim, and what the node has given to pods of other shards than the asking one.
type claimAnswer struct {
	Answers []pods.Answer `json:"answers"`
	Foreign []pods.Claim  `json:"foreign"`
}

// claim answers as the ledger does.
func (n *node) claim(ctx context.Context, request claimRequest) claimAnswer {
	answer := claimAnswer{Answers: n.ledger.Claim(request.Claims, time.Now())}
	for _, held := range n.ledger.Held(time.Now()) {
		shard, err := n.peer.directory.Locate(ctx, held.Namespace)
		if err == nil && shard != request.Shard {
			answer.Foreign = append(answer.Foreign, held.Outline())
		}
	}
	return answer
}

// rooms asks a node for room for pods of one shard.
func (p *Peer) rooms(shard uint64) rooms {
	return func(ctx context.Context, node *corev1.Node, claims []pods.Claim) ([]pods.Answer, placement.NodeUsage, error) {
		request := claimRequest{Shard: shard, Claims: claims}
		var answer claimAnswer
		peerID := node.Annotations[peerAnnotation]
		switch peerID {
		case "":
			return nil, placement.NodeUsage{}, errors.New("no peer runs this node")
		case p.self.ID:
			answer = p.node.claim(ctx, request)
		default:
			var err error
			if answer, err = p.nodes.claim(ctx, peerID, request); err != nil {
				return nil, placement.NodeUsage{}, err
			}
		}
		return answer.Answers, usageOf(node.Name, answer.Foreign), nil
	}
}

func usageOf(node string, foreign []pods.Claim) placement.NodeUsage {
	usage := placement.NodeUsage{Node: node}
	for _, claim := range foreign {
		usage.Granted.Add(placement.ResourcesOf(claim.Requests))
		usage.Granted.Pods++
		for _, port := range claim.HostPorts {
			usage.Ports = append(usage.Ports, placement.HostPort{IP: port.IP, Protocol: port.Protocol, Port: port.Port})
		}
		if claim.Pod != nil {
			usage.Pods = append(usage.Pods, foreignPod(node, claim))
		}
	}
	return usage
}

// foreignPod is a pod of another shard as its claim tells of it.
func foreignPod(node string, claim pods.Claim) *corev1.Pod {
	pod := *claim.Pod
	pod.Namespace, pod.Name, pod.UID, pod.Spec.NodeName = claim.Namespace, claim.Name, claim.PodUID, node
	container := corev1.Container{Resources: corev1.ResourceRequirements{Requests: claim.Requests}}
	for _, port := range claim.HostPorts {
		container.Ports = append(container.Ports, corev1.ContainerPort{HostPort: port.Port, HostIP: port.IP, Protocol: port.Protocol})
	}
	pod.Spec.Containers = []corev1.Container{container}
	return &pod
}

// caller is the key under which a connection's proven peer ID stands in a request's context.
type caller struct{}

func callerOf(r *http.Request) string {
	id, _ := r.Context().Value(caller{}).(string)
	return id
}
