package peer

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/runtime/pods"
)

// objects reads what pods refer to. It asks with all rights: a peer holds the cluster's keys anyway, and the node authoriser, which learns
// of a pod by watching, would refuse in the first moments after the binding. The agent asks for nothing but what its pods name.
func (n *node) objects() pods.Objects {
	return pods.Objects{
		ConfigMap: func(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
			return ask(n, func(c *kubernetes.Clientset) (*corev1.ConfigMap, error) {
				return c.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
			})
		},
		Secret: func(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
			return ask(n, func(c *kubernetes.Clientset) (*corev1.Secret, error) {
				return c.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
			})
		},
		PersistentVolumeClaim: func(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
			return ask(n, func(c *kubernetes.Clientset) (*corev1.PersistentVolumeClaim, error) {
				return c.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
			})
		},
		PersistentVolume: func(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
			return ask(n, func(c *kubernetes.Clientset) (*corev1.PersistentVolume, error) {
				return c.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
			})
		},
		ServiceAccount: func(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
			return ask(n, func(c *kubernetes.Clientset) (*corev1.ServiceAccount, error) {
				return c.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
			})
		},
		Services: n.services,
		Token: func(ctx context.Context, namespace, account string, spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequestStatus, error) {
			return ask(n, func(c *kubernetes.Clientset) (*authenticationv1.TokenRequestStatus, error) {
				request := &authenticationv1.TokenRequest{Spec: spec}
				answer, err := c.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
				if err != nil {
					return nil, err
				}
				return &answer.Status, nil
			})
		},
	}
}

// ask makes one call.
func ask[T any](n *node, call func(*kubernetes.Clientset) (T, error)) (T, error) {
	client, err := n.api()
	if err != nil {
		var none T
		return none, err
	}
	return call(client)
}

func (n *node) services(ctx context.Context, namespace string) ([]*corev1.Service, error) {
	list, err := ask(n, func(c *kubernetes.Clientset) (*corev1.ServiceList, error) {
		return c.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
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
