package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// ends are what is left in a namespace, without what tells one making of an object from another.
func ends(ctx context.Context, client kubernetes.Interface, namespace string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	configMaps, err := client.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{LabelSelector: ringLabel})
	if err != nil {
		return nil, err
	}
	secrets, err := client.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: ringLabel})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, c := range configMaps.Items {
		all = append(all, fmt.Sprintf("configmap %s %v %v", c.Name, c.Labels, c.Data))
	}
	for _, s := range secrets.Items {
		all = append(all, fmt.Sprintf("secret %s %v %s", s.Name, s.Labels, s.Data))
	}
	slices.Sort(all)
	return all, nil
}

// differ says how an end state differs from the one that nothing disturbed, empty if it does not.
func differ(undisturbed, disturbed []string) string {
	for _, object := range undisturbed {
		if !slices.Contains(disturbed, object) {
			return object + " is missing"
		}
	}
	for _, object := range disturbed {
		if !slices.Contains(undisturbed, object) {
			return object + " should not be there"
		}
	}
	return ""
}
