package peer

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/runtime/pods"
)

// objects reads what pods refer to. It asks with all rights: a peer holds the cluster's keys anyway, and the node authoriser, which learns
// of a pod by watching, would refuse in the first moments after the binding. The agent asks for nothing but what its pods name.
func (n *node) objects() pods.Objects {
	return pods.Objects{
		ConfigMap: func(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
			return read(ctx, n, func(ctx context.Context, c *kubernetes.Clientset, at string) (*corev1.ConfigMap, error) {
				return c.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{ResourceVersion: at})
			})
		},
		Secret: func(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
			return read(ctx, n, func(ctx context.Context, c *kubernetes.Clientset, at string) (*corev1.Secret, error) {
				return c.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{ResourceVersion: at})
			})
		},
		PersistentVolumeClaim: func(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
			return read(ctx, n, func(ctx context.Context, c *kubernetes.Clientset, at string) (*corev1.PersistentVolumeClaim, error) {
				return c.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{ResourceVersion: at})
			})
		},
		PersistentVolume: func(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
			return read(ctx, n, func(ctx context.Context, c *kubernetes.Clientset, at string) (*corev1.PersistentVolume, error) {
				return c.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{ResourceVersion: at})
			})
		},
		ServiceAccount: func(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
			return read(ctx, n, func(ctx context.Context, c *kubernetes.Clientset, at string) (*corev1.ServiceAccount, error) {
				return c.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{ResourceVersion: at})
			})
		},
		Services: n.services,
		Token: func(ctx context.Context, namespace, account string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequestStatus, error) {
			client, err := n.api()
			if err != nil {
				return nil, err
			}
			request := &authenticationv1.TokenRequest{Spec: spec}
			answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
			if err != nil {
				return nil, err
			}
			return &answer.Status, nil
		},
	}
}

// read reads what is stored now, or else, where that cannot be found out in time, any copy of it (resourceVersion 0): a container that ends
// is started again, and one that needs a Service of another namespace is started, whether or not a shard has a quorum.
func read[T any](ctx context.Context, n *node, get func(ctx context.Context, c *kubernetes.Clientset, at string) (T, error)) (T, error) {
	client, err := n.api()
	if err != nil {
		var none T
		return none, err
	}
	bounded, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stored, err := get(bounded, client, "")
	if err == nil || apierrors.IsNotFound(err) || ctx.Err() != nil {
		return stored, err
	}
	n.log.Debug("what a pod refers to is read from any copy", "error", err)
	return get(ctx, client, "0")
}

func (n *node) services(ctx context.Context, namespace string) ([]*corev1.Service, error) {
	list, err := read(ctx, n, func(ctx context.Context, c *kubernetes.Clientset, at string) (*corev1.ServiceList, error) {
		return c.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{ResourceVersion: at})
	})
	if err != nil {
		return nil, err
	}
	services := make([]*corev1.Service, len(list.Items))
	for i := range list.Items {
		services[i] = &list.Items[i]
	}
	return services, nil
}
