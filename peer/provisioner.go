package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/placement/turn"
	"shoal/runtime/volumes"
)

// nodeProvisioner is the provisioner of volumes that are folders of the node on which their first consumer runs.
const nodeProvisioner = "shoal.io/local"

// provisionedBy is the annotation that names a volume's provisioner, which alone deletes it.
// https://kubernetes.io/docs/reference/labels-annotations-taints/#pv-kubernetes-io-provisioned-by
const provisionedBy = "pv.kubernetes.io/provisioned-by"

// volumePrefix is where the API keeps volumes.
const volumePrefix = registry + "persistentvolumes/"

// bindPatience is how long the mounting of a claim waits for its binding, once its volume is there, before it is tried anew.
const bindPatience = 10 * time.Second

// provisioner makes the volumes of claims whose pods are bound to this node, and deletes those that are released.
type provisioner struct {
	node   string
	host   *consensus.Host
	client func() (*kubernetes.Clientset, error)
	local  *volumes.Local
	events func(about *corev1.PersistentVolumeClaim, kind, reason, message string)
	log    *slog.Logger
}

// openProvisioner keeps volumes in the data folder.
func (n *node) openProvisioner() error {
	local, err := volumes.NewLocal(filepath.Join(n.peer.cfg.DataDir, "volumes"))
	if err != nil {
		return err
	}
	n.provisioner = &provisioner{
		node: n.peer.self.Name, host: n.peer.host, client: n.api, local: local, log: n.log,
		events: func(about *corev1.PersistentVolumeClaim, kind, reason, message string) {
			if recorder := n.events.Load(); recorder != nil {
				(*recorder).Event(about, kind, reason, message)
			}
		},
	}
	return nil
}

// provision makes the volume of a claim, if it is of this provisioner's class and this node's to make, and waits until the two are bound.
// Any other claim comes back as it is. It may be called again at any point: folder and volume are named after the claim.
func (p *provisioner) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	client, err := p.client()
	if err != nil || claim.Spec.VolumeName != "" || claim.Spec.StorageClassName == nil || claim.DeletionTimestamp != nil {
		return claim, err
	}
	class, err := client.StorageV1().StorageClasses().Get(ctx, *claim.Spec.StorageClassName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && class.Provisioner != nodeProvisioner {
		return claim, nil
	}
	if err != nil {
		return nil, err
	}
	if chosen := claim.Annotations[turn.SelectedNode]; chosen != "" && chosen != p.node {
		return nil, fmt.Errorf("the volume of persistentvolumeclaim %q is made on node %s", claim.Name, chosen)
	}
	if err := p.create(ctx, client, claim, class); err != nil {
		p.events(claim, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
		return nil, err
	}
	return awaitBound(ctx, client, claim)
}

func (p *provisioner) create(ctx context.Context, client *kubernetes.Clientset, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	if claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode != corev1.PersistentVolumeFilesystem {
		return fmt.Errorf("%s makes folders, no volumes of mode %s", nodeProvisioner, *claim.Spec.VolumeMode)
	}
	for _, mode := range claim.Spec.AccessModes {
		if mode == corev1.ReadWriteMany || mode == corev1.ReadOnlyMany {
			return fmt.Errorf("%s makes volumes of one node: ReadWriteOnce and ReadWriteOncePod, not %s", nodeProvisioner, mode)
		}
	}
	name := "pvc-" + string(claim.UID)
	path, err := p.local.Make(name)
	if err != nil {
		return err
	}
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	_, err = client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: nodeProvisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: policy, StorageClassName: class.Name,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{p.node}}},
			}}}},
		},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err == nil {
		p.events(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume "+name)
	}
	return err
}

// awaitBound waits for the binder, which runs on the meta leader.
func awaitBound(ctx context.Context, client *kubernetes.Clientset, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	for {
		now, err := client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
		if err != nil || now.UID == claim.UID && now.Status.Phase == corev1.ClaimBound {
			return now, err
		}
		select {
		case <-ctx.Done():
			return now, nil // it is tried again
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Run deletes released volumes until ctx ends. Only those whose folders are here are looked at.
func (p *provisioner) Run(ctx context.Context) error {
	released := newQueue()
	f := &feed{
		host: p.host, shard: consensus.MetaShard, prefix: volumePrefix, log: p.log,
		want:  func(key string) bool { return p.local.Has(strings.TrimPrefix(key, volumePrefix)) },
		apply: released.from(consensus.MetaShard, volumePrefix),
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	doomed := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return <-ended
		case <-released.wake:
		case <-time.After(volumeRetry):
		}
		for _, c := range released.take() {
			volume, ok := c.Object.(*corev1.PersistentVolume)
			if ok && !c.Gone && volume.Annotations[provisionedBy] == nodeProvisioner && volume.Status.Phase == corev1.VolumeReleased &&
				volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
				doomed[volume.Name] = true
			} else if ok {
				delete(doomed, volume.Name)
			}
		}
		for name := range doomed {
			if err := p.delete(ctx, name); err != nil && ctx.Err() == nil {
				p.log.Warn("a released volume could not be deleted, trying again", "volume", name, "error", err)
				continue
			}
			delete(doomed, name)
		}
	}
}

// volumeRetry is how soon a deletion that failed is tried again.
const volumeRetry = 15 * time.Second

// delete removes what was stored, and then the object that stood for it.
func (p *provisioner) delete(ctx context.Context, name string) error {
	client, err := p.client()
	if err != nil {
		return err
	}
	if err := p.local.Remove(name); err != nil {
		return err
	}
	err = client.CoreV1().PersistentVolumes().Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// storageClassMade is written once the default class was made, so that a user may delete it.
const storageClassMade = "/shoal/defaults/storageclass"

// defaultStorageClass makes the class of node-local volumes, once in a cluster's life.
func (p *Peer) defaultStorageClass(ctx context.Context) error {
	if err := p.api.WaitReady(ctx); err != nil {
		return err
	}
	if _, made, _, err := p.host.Get(ctx, consensus.MetaShard, storageClassMade, consensus.Linearizable); made || err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(p.api.Loopback())
	if err != nil {
		return err
	}
	policy, mode := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	_, err = client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "local", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner: nodeProvisioner, ReclaimPolicy: &policy, VolumeBindingMode: &mode,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	result, err := p.host.Propose(ctx, consensus.MetaShard, store.Transaction{
		Conditions: []store.Condition{{Key: storageClassMade}}, Ops: []store.Op{{Key: storageClassMade, Value: []byte("local")}},
	})
	if err == nil && !result.OK {
		err = errors.New("somebody else has made it")
	}
	return err
}
