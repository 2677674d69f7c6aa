package api

import (
	"cmp"
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/metrics/pkg/apis/metrics"
	metricsinstall "k8s.io/metrics/pkg/apis/metrics/install"

	"shoal/runtime/stats"
)

// usageOf tells what nodes use, see Config.Usage.
type usageOf func(ctx context.Context, nodes []string) map[string]stats.Use

// installMetrics adds the group metrics.k8s.io, which elsewhere an aggregated server provides. Nothing of it is stored: every answer is made
// from what the nodes say now.
// https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/#metrics-api
func installMetrics(server *genericapiserver.GenericAPIServer, client kubernetes.Interface, usage usageOf) error {
	scheme := runtime.NewScheme()
	metricsinstall.Install(scheme)
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	info := genericapiserver.NewDefaultAPIGroupInfo(metrics.GroupName, scheme, metav1.ParameterCodec, serializer.NewCodecFactory(scheme))
	for _, version := range info.PrioritizedVersions {
		info.VersionedResourcesStorageMap[version.Version] = map[string]rest.Storage{
			"nodes": &nodeMetrics{client: client, usage: usage}, "pods": &podMetrics{client: client, usage: usage},
		}
	}
	return server.InstallAPIGroup(&info)
}

// metricsReader lets those who may view, edit or administer read metrics too, as the usual provider of this API does.
func metricsReader() rbacv1.ClusterRole {
	return rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: map[string]string{
			"rbac.authorization.k8s.io/aggregate-to-view": "true", "rbac.authorization.k8s.io/aggregate-to-edit": "true",
			"rbac.authorization.k8s.io/aggregate-to-admin": "true",
		}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{metrics.GroupName}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list", "watch"}}},
	}
}

// inner is the context of a request that is made to answer another one: it ends with that, and is no part of it to the audit log.
type inner struct{ context.Context }

// Value implements context.Context.
func (inner) Value(any) any { return nil }

// listing turns the selectors of a request into those of the list of nodes or pods behind it.
func listing(options *metainternalversion.ListOptions) metav1.ListOptions {
	behind := metav1.ListOptions{ResourceVersion: "0"}
	if options != nil && options.LabelSelector != nil {
		behind.LabelSelector = options.LabelSelector.String()
	}
	if options != nil && options.FieldSelector != nil {
		behind.FieldSelector = options.FieldSelector.String()
	}
	return behind
}

func amounts(amount stats.Amount) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *quantity.NewScaledQuantity(int64(amount.CPU), quantity.Nano),
		corev1.ResourceMemory: *quantity.NewQuantity(int64(amount.Memory), quantity.BinarySI),
	}
}

// readOnly is what both resources share.
type readOnly struct{}

func (readOnly) Destroy() {}

// nodeMetrics serves nodes.metrics.k8s.io.
type nodeMetrics struct {
	readOnly
	client kubernetes.Interface
	usage  usageOf
}

var _ interface {
	rest.Storage
	rest.KindProvider
	rest.Scoper
	rest.Getter
	rest.Lister
	rest.SingularNameProvider
} = &nodeMetrics{}

func (*nodeMetrics) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (*nodeMetrics) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (*nodeMetrics) Kind() string            { return "NodeMetrics" }
func (*nodeMetrics) NamespaceScoped() bool   { return false }
func (*nodeMetrics) GetSingularName() string { return "node" }

func (m *nodeMetrics) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	node, err := m.client.CoreV1().Nodes().Get(inner{ctx}, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, notFoundAs("nodes", name, err)
	}
	if found := m.of(ctx, []corev1.Node{*node}); len(found) > 0 {
		return &found[0], nil
	}
	return nil, apierrors.NewNotFound(metrics.Resource("nodes"), name)
}

func (m *nodeMetrics) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	nodes, err := m.client.CoreV1().Nodes().List(inner{ctx}, listing(options))
	if err != nil {
		return nil, err
	}
	return &metrics.NodeMetricsList{ListMeta: metav1.ListMeta{ResourceVersion: nodes.ResourceVersion}, Items: m.of(ctx, nodes.Items)}, nil
}

func (m *nodeMetrics) of(ctx context.Context, nodes []corev1.Node) []metrics.NodeMetrics {
	names := make([]string, len(nodes))
	for i := range nodes {
		names[i] = nodes[i].Name
	}
	usage := m.usage(ctx, names)
	items := make([]metrics.NodeMetrics, 0, len(nodes))
	for i := range nodes {
		use, ok := usage[nodes[i].Name]
		if !ok {
			continue
		}
		items = append(items, metrics.NodeMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: nodes[i].Name, Labels: nodes[i].Labels, CreationTimestamp: metav1.NewTime(time.Now())},
			Timestamp:  metav1.NewTime(use.At), Window: metav1.Duration{Duration: use.Window.Round(time.Millisecond)}, Usage: amounts(use.Node),
		})
	}
	slices.SortFunc(items, func(a, b metrics.NodeMetrics) int { return cmp.Compare(a.Name, b.Name) })
	return items
}

func (m *nodeMetrics) ConvertToTable(_ context.Context, object, _ runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{ColumnDefinitions: metricColumns}
	switch o := object.(type) {
	case *metrics.NodeMetrics:
		table.Rows = append(table.Rows, metricRow(o, o.Usage, o.Window))
	case *metrics.NodeMetricsList:
		table.ResourceVersion = o.ResourceVersion
		for i := range o.Items {
			table.Rows = append(table.Rows, metricRow(&o.Items[i], o.Items[i].Usage, o.Items[i].Window))
		}
	}
	return table, nil
}

// podMetrics serves pods.metrics.k8s.io.
type podMetrics struct {
	readOnly
	client kubernetes.Interface
	usage  usageOf
}

var _ interface {
	rest.Storage
	rest.KindProvider
	rest.Scoper
	rest.Getter
	rest.Lister
	rest.SingularNameProvider
} = &podMetrics{}

func (*podMetrics) New() runtime.Object     { return &metrics.PodMetrics{} }
func (*podMetrics) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (*podMetrics) Kind() string            { return "PodMetrics" }
func (*podMetrics) NamespaceScoped() bool   { return true }
func (*podMetrics) GetSingularName() string { return "pod" }

func (m *podMetrics) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	pod, err := m.client.CoreV1().Pods(request.NamespaceValue(ctx)).Get(inner{ctx}, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, notFoundAs("pods", name, err)
	}
	if found := m.of(ctx, []corev1.Pod{*pod}); len(found) > 0 {
		return &found[0], nil
	}
	return nil, apierrors.NewNotFound(metrics.Resource("pods"), name)
}

func (m *podMetrics) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	pods, err := m.client.CoreV1().Pods(request.NamespaceValue(ctx)).List(inner{ctx}, listing(options))
	if err != nil {
		return nil, err
	}
	return &metrics.PodMetricsList{ListMeta: metav1.ListMeta{ResourceVersion: pods.ResourceVersion}, Items: m.of(ctx, pods.Items)}, nil
}

// of leaves out pods that do not run, and those too young to have a window.
func (m *podMetrics) of(ctx context.Context, pods []corev1.Pod) []metrics.PodMetrics {
	byUID := map[types.UID]stats.PodUse{}
	for _, use := range m.usage(ctx, nodesOf(pods)) {
		for _, pod := range use.Pods {
			byUID[types.UID(pod.UID)] = pod
		}
	}
	items := make([]metrics.PodMetrics, 0, len(pods))
	for i := range pods {
		pod := &pods[i]
		use, ok := byUID[pod.UID]
		if !ok || pod.Status.Phase != corev1.PodRunning {
			continue
		}
		item := metrics.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels, CreationTimestamp: metav1.NewTime(time.Now())},
			Timestamp:  metav1.NewTime(use.At), Window: metav1.Duration{Duration: use.Window.Round(time.Millisecond)},
		}
		for _, c := range use.Containers {
			item.Containers = append(item.Containers, metrics.ContainerMetrics{Name: c.Name, Usage: amounts(c.Amount)})
		}
		items = append(items, item)
	}
	slices.SortFunc(items, func(a, b metrics.PodMetrics) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return items
}

func nodesOf(pods []corev1.Pod) []string {
	seen := map[string]bool{}
	var nodes []string
	for i := range pods {
		if name := pods[i].Spec.NodeName; name != "" && !seen[name] {
			seen[name] = true
			nodes = append(nodes, name)
		}
	}
	return nodes
}

func (m *podMetrics) ConvertToTable(_ context.Context, object, _ runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{ColumnDefinitions: metricColumns}
	switch o := object.(type) {
	case *metrics.PodMetrics:
		table.Rows = append(table.Rows, metricRow(o, total(o), o.Window))
	case *metrics.PodMetricsList:
		table.ResourceVersion = o.ResourceVersion
		for i := range o.Items {
			table.Rows = append(table.Rows, metricRow(&o.Items[i], total(&o.Items[i]), o.Items[i].Window))
		}
	}
	return table, nil
}

func total(pod *metrics.PodMetrics) corev1.ResourceList {
	sum := corev1.ResourceList{}
	for _, c := range pod.Containers {
		for name, amount := range c.Usage {
			have := sum[name]
			have.Add(amount)
			sum[name] = have
		}
	}
	return sum
}

var metricColumns = []metav1.TableColumnDefinition{
	{Name: "Name", Type: "string", Format: "name", Description: "What is measured."},
	{Name: "CPU", Type: "string", Description: "Processor time, in cores, over the window."},
	{Name: "Memory", Type: "string", Description: "Working set at the end of the window."},
	{Name: "Window", Type: "string", Description: "What the figures are taken over."},
}

func metricRow(object interface {
	metav1.Object
	runtime.Object
}, usage corev1.ResourceList, window metav1.Duration) metav1.TableRow {
	return metav1.TableRow{
		Cells:  []any{object.GetName(), usage.Cpu().String(), usage.Memory().String(), window.Duration.String()},
		Object: runtime.RawExtension{Object: object},
	}
}

// notFoundAs names what was asked for, where the object behind it is missing.
func notFoundAs(resource, name string, err error) error {
	if apierrors.IsNotFound(err) {
		return apierrors.NewNotFound(metrics.Resource(resource), name)
	}
	return err
}
