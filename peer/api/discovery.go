package api

import (
	"fmt"
	"slices"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	extensionslisters "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/tools/cache"
)

// listCustomGroups keeps the groups of custom resources in the plain list of groups at /apis, which older clients read.
// The aggregated document, which newer ones read, is shared by both servers and needs no help.
func listCustomGroups(kube *genericapiserver.GenericAPIServer, extensions *extensionsapiserver.CustomResourceDefinitions) error {
	own := metav1.GroupVersionForDiscovery{
		GroupVersion: apiextensionsv1.SchemeGroupVersion.String(), Version: apiextensionsv1.SchemeGroupVersion.Version,
	}
	kube.DiscoveryGroupManager.AddGroup(metav1.APIGroup{
		Name: apiextensionsv1.GroupName, Versions: []metav1.GroupVersionForDiscovery{own}, PreferredVersion: own,
	})

	definitions := extensions.Informers.Apiextensions().V1().CustomResourceDefinitions()
	g := &customGroups{definitions: definitions.Lister(), root: kube.DiscoveryGroupManager, listed: sets.New[string]()}
	_, err := definitions.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { g.sync() },
		UpdateFunc: func(any, any) { g.sync() },
		DeleteFunc: func(any) { g.sync() },
	})
	if err != nil {
		return fmt.Errorf("watch custom resource definitions: %w", err)
	}
	return nil
}

type customGroups struct {
	definitions extensionslisters.CustomResourceDefinitionLister
	root        discovery.GroupManager

	mu     sync.Mutex
	listed sets.Set[string]
}

func (g *customGroups) sync() {
	g.mu.Lock()
	defer g.mu.Unlock()
	all, err := g.definitions.List(labels.Everything())
	if err != nil {
		return // listing a cache cannot fail
	}
	served := map[string]sets.Set[string]{}
	for _, d := range all {
		for _, v := range d.Spec.Versions {
			if v.Served && established(d) {
				if served[d.Spec.Group] == nil {
					served[d.Spec.Group] = sets.New[string]()
				}
				served[d.Spec.Group].Insert(v.Name)
			}
		}
	}
	for name := range g.listed.Difference(sets.KeySet(served)) {
		g.root.RemoveGroup(name)
	}
	for _, name := range sets.List(sets.KeySet(served)) {
		g.root.AddGroup(apiGroup(name, served[name].UnsortedList()))
	}
	g.listed = sets.KeySet(served)
}

func established(d *apiextensionsv1.CustomResourceDefinition) bool {
	return slices.ContainsFunc(d.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
}

// apiGroup lists versions best first, as Kubernetes orders them: v2, v1, v1beta1.
func apiGroup(name string, versions []string) metav1.APIGroup {
	slices.SortFunc(versions, func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
	group := metav1.APIGroup{Name: name}
	for _, v := range versions {
		group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v, Version: v})
	}
	group.PreferredVersion = group.Versions[0]
	return group
}
