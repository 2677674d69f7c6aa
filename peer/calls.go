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
	return admin.Calls{
		Status: p.status, Leave: p.leaveCluster, ImportImage: p.importImage, ListImages: p.listImages,
		Settings: p.listSettings, Set: p.set, Losses: p.losses, Recover: p.recover, Backup: p.backup, Hint: p.hint,
		ExplainPlacement: p.explainPlacement,
	}
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
	p.leave()
	return nil
}

// awaitNoReplicas waits until no shard counts on this peer any more.
func (p *Peer) awaitNoReplicas(ctx context.Context, progress func(string)) error {
	last := -1
	for {
		held := len(p.host.Held())
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
