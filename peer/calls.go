package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/admin"
	"shoal/peer/identity"
	"shoal/runtime/pods"
)

// calls are what the local administration socket offers.
func (p *Peer) calls() admin.Calls {
	return admin.Calls{Status: p.status, Leave: p.leaveCluster, ImportImage: p.importImage, ListImages: p.listImages, ExplainPlacement: p.explainPlacement}
}

// status is what this peer knows, also without a quorum.
func (p *Peer) status(ctx context.Context) (*admin.Status, error) {
	s := &admin.Status{
		ClusterID: p.self.Cluster.ID, PeerID: p.self.ID, Name: p.self.Name, Version: p.cfg.Version,
		Address: p.endpoint().String(), Started: p.started,
	}
	for _, member := range p.members.Members() {
		s.Peers = append(s.Peers, admin.PeerStatus{
			PeerID: member.PeerID, Name: member.Name, Address: member.Address.String(), Zone: member.Tags.Zone,
			Version: member.Tags.Version, State: member.Status.String(),
		})
	}
	namespaces := p.namespacesPerShard(ctx)
	for _, status := range p.host.Status() {
		shard := admin.ShardStatus{
			Shard: status.Shard, Leader: status.Leader, Local: status.Local, Applied: uint64(status.Revision), Namespaces: namespaces[status.Shard],
			Quarantine: status.Quarantine,
		}
		for _, member := range status.Members {
			if member.Voter {
				shard.Voters = append(shard.Voters, member.Peer)
			} else {
				shard.NonVoters = append(shard.NonVoters, member.Peer)
			}
		}
		switch {
		case status.Quarantine != "" && status.Trouble == "":
			s.Problems = append(s.Problems, fmt.Sprintf("shard %d: the replica here is quarantined: %s", status.Shard, status.Quarantine))
		case status.Trouble != "":
			s.Problems = append(s.Problems, fmt.Sprintf("shard %d: %s", status.Shard, status.Trouble))
		case status.Leader == "":
			s.Problems = append(s.Problems, fmt.Sprintf("shard %d has no leader that this peer knows of", status.Shard))
		}
		s.Shards = append(s.Shards, shard)
	}
	if problem := p.clock.problem(); problem != "" {
		s.Problems = append(s.Problems, problem)
	}
	if p.serving.Load() {
		if err := p.api.Ready(ctx); err != nil {
			s.Problems = append(s.Problems, "the API is not ready: "+firstLine(err))
		} else {
			s.Ready = true
		}
	} else {
		s.Problems = append(s.Problems, "the API is starting")
	}
	return s, nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (p *Peer) namespacesPerShard(ctx context.Context) map[uint64]int {
	counts := map[uint64]int{}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	list, err := p.host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: registry + "namespaces/"}, consensus.Local)
	if err != nil {
		return counts
	}
	for _, kv := range list.KVs {
		if shard, err := p.directory.Locate(ctx, strings.TrimPrefix(kv.Key, registry+"namespaces/")); err == nil {
			counts[shard]++
		}
	}
	return counts
}

var errStarting = errors.New("the peer is starting: try again in a moment")

func (p *Peer) importImage(ctx context.Context, tarball io.Reader, progress func(string)) ([]admin.Image, error) {
	if !p.serving.Load() {
		return nil, errStarting
	}
	progress("unpacking")
	images, err := p.node.engine.Import(ctx, tarball)
	if err != nil {
		return nil, err
	}
	p.node.statusChanged()
	return describeImages(images), nil
}

func (p *Peer) listImages(ctx context.Context) ([]admin.Image, error) {
	if !p.serving.Load() {
		return nil, errStarting
	}
	images, err := p.node.engine.ListImages(ctx)
	return describeImages(images), err
}

func describeImages(images []pods.Image) []admin.Image {
	var described []admin.Image
	for _, image := range images {
		for _, name := range image.Names {
			described = append(described, admin.Image{Name: name, Digest: image.ID, Size: image.Size})
		}
	}
	slices.SortFunc(described, func(a, b admin.Image) int { return strings.Compare(a.Name, b.Name) })
	return described
}

// leaveTimeout bounds how long a leaving peer waits until the others have taken over what it held.
const leaveTimeout = 5 * time.Minute

// leaveCluster takes this peer out for good: pods elsewhere, replicas elsewhere, and then its Node, its record and its identity gone.
func (p *Peer) leaveCluster(ctx context.Context, progress func(string)) error {
	if !p.serving.Load() {
		return errStarting
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(p.api.Loopback())
	if err != nil {
		return err
	}
	records, err := listPeers(ctx, p.host)
	if err != nil {
		return err
	}
	if len(records) < 2 {
		return errors.New("this is the cluster's only peer: nobody could take over what it holds; to end the cluster, stop the peer and remove its data folder")
	}
	progress("giving up shard replicas")
	mark := store.Transaction{Ops: []store.Op{{Key: leavingPrefix + p.self.ID, Value: []byte(p.self.Name)}}}
	if _, err := p.host.Propose(ctx, consensus.MetaShard, mark); err != nil {
		return err
	}
	if err := p.drain(ctx, client, progress); err != nil {
		return err
	}
	if err := p.awaitNoReplicas(ctx, progress); err != nil {
		return err
	}
	progress("removing the node")
	p.gone.Store(true) // from here on the node does not write itself down again
	if err := client.CoreV1().Nodes().Delete(ctx, p.self.Name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := removePeer(ctx, p.host, identity.PeerRecord{PeerID: p.self.ID, Name: p.self.Name}); err != nil {
		return err
	}
	if err := p.members.Leave(ctx); err != nil {
		p.log.Warn("saying goodbye failed", "error", err)
	}
	if err := p.node.clear(ctx); err != nil {
		p.log.Warn("pods that stayed could not be ended", "error", err)
	}
	progress("left the cluster")
	time.AfterFunc(200*time.Millisecond, p.leave)
	return nil
}

// awaitNoReplicas waits until no shard counts on this peer any more.
func (p *Peer) awaitNoReplicas(ctx context.Context, progress func(string)) error {
	last := -1
	for {
		held := 0
		for _, status := range p.host.Status() {
			for _, member := range status.Members {
				if member.Peer == p.self.ID {
					held++
				}
			}
		}
		if held == 0 {
			return nil
		}
		if held != last {
			progress(fmt.Sprintf("%d shard replicas are still being handed over", held))
			last = held
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d shard replicas could not be handed over: %w; the peer stays in the cluster", held, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
