package sim

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"shoal/placement"
	"shoal/sim/model"
)

const (
	formManifests = "workloads FOLDER [only NAME …]"
	// Bounds of what is read from a folder of manifests.
	mostManifests     = 1000
	largestManifest   = 4 << 20
	defaultPodGrace   = 30
	manifestNamespace = "default"
)

// takeManifests reads the Deployments, StatefulSets, DaemonSets and Jobs of a folder, or those named.
func (p *parser) takeManifests(r *reader) {
	folder := r.word()
	if r.err != nil {
		return
	}
	if !filepath.IsAbs(folder) {
		folder = filepath.Join(p.folder, folder)
	}
	folder, err := filepath.Abs(folder)
	if err != nil {
		r.fail("%v", err)
		return
	}
	if strings.ContainsAny(folder, " \t#") {
		r.fail("the path %q has white space or a # in it", folder)
		return
	}
	workloads, leftOut, err := readManifests(folder)
	if err != nil {
		r.fail("%v", err)
		return
	}
	if r.optional("only") {
		workloads = r.only(workloads)
	}
	for _, w := range workloads {
		if slices.ContainsFunc(p.scenario.Config.Workloads, func(other model.Workload) bool { return other.Name == w.Name }) {
			r.fail("there is a %q already", w.Name)
		}
		if p.pods += w.Replicas; p.pods > mostPods {
			r.fail("that makes more than %d pods", mostPods)
		}
	}
	p.scenario.Config.Workloads = append(p.scenario.Config.Workloads, workloads...)
	p.scenario.LeftOut = append(p.scenario.LeftOut, leftOut...)
}

// only takes names to the end of the line, and keeps those workloads.
func (r *reader) only(all []model.Workload) []model.Workload {
	names := make([]string, len(all))
	for i, w := range all {
		names[i] = w.Name
	}
	var kept []model.Workload
	for more := true; more && r.err == nil; more = len(r.words) > 0 {
		name := r.word()
		i := slices.Index(names, name)
		if i < 0 {
			r.failMeant(name, names, "the folder has no workload %q", name)
			return nil
		}
		kept = append(kept, all[i])
	}
	return kept
}

// readManifests reads the YAML and JSON files of a folder, in order of their names. leftOut says, by kind, what the simulation knows nothing
// of.
func readManifests(folder string) (workloads []model.Workload, leftOut []string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, fmt.Errorf("the folder of manifests cannot be read: %w", err)
	}
	all := manifests{others: map[string]int{}}
	files := 0
	for _, entry := range entries {
		if !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(entry.Name())) || !entry.Type().IsRegular() {
			continue
		}
		if files++; files > mostManifests {
			return nil, nil, fmt.Errorf("%s has more than %d manifests", folder, mostManifests)
		}
		if info, err := entry.Info(); err != nil || info.Size() > largestManifest {
			return nil, nil, fmt.Errorf("%s is larger than %d MiB, or gone", entry.Name(), largestManifest>>20)
		}
		content, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if err != nil {
			return nil, nil, err
		}
		if err := all.read(content); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", entry.Name(), err)
		}
	}
	if len(all.workloads) == 0 {
		return nil, nil, fmt.Errorf("%s has no file (.yaml, .yml, .json) with a Deployment, a StatefulSet, a DaemonSet or a Job", folder)
	}
	all.protect()
	workloads = all.workloads
	for i := range workloads {
		workloads[i].Folder = folder
	}
	for kind, n := range all.others {
		leftOut = append(leftOut, fmt.Sprintf("%s (%d)", kind, n))
	}
	slices.Sort(leftOut)
	return workloads, leftOut, nil
}

// manifests are what a folder says.
type manifests struct {
	workloads []model.Workload
	spaces    []string // of each workload: the namespace of its manifest
	budgets   []policyv1.PodDisruptionBudget
	others    map[string]int // by kind: what the simulation knows nothing of
}

// protect gives every workload the budgets that are about its pods. One that is about those of several is each one's own here, as they have
// namespaces of their own; one that is about none is left out.
func (all *manifests) protect() {
	for i := range all.budgets {
		budget, used := &all.budgets[i], false
		for k := range all.workloads {
			w := &all.workloads[k]
			if all.spaces[k] == space(&budget.ObjectMeta) && placement.Protects(budget, w.Template.Labels) {
				w.Budgets, used = append(w.Budgets, budget.Spec), true
			}
		}
		if !used {
			all.others["PodDisruptionBudget that protects none of these pods"]++
		}
	}
}

// space is the namespace that a manifest goes to.
func space(meta *metav1.ObjectMeta) string { return cmp.Or(meta.Namespace, manifestNamespace) }

// read takes in the documents of a file.
func (all *manifests) read(content []byte) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for number := 1; ; number++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", number, err)
		}
		var what metav1.TypeMeta
		if err := yaml.Unmarshal(document, &what); err != nil {
			return fmt.Errorf("document %d: %w", number, err)
		}
		var meta metav1.ObjectMeta
		var w model.Workload
		switch {
		case what.Kind == "" && what.APIVersion == "":
			continue // nothing, or only comments
		case what.Kind == "Deployment" && what.APIVersion == "apps/v1":
			var d appsv1.Deployment
			if err = yaml.UnmarshalStrict(document, &d); err == nil {
				meta = d.ObjectMeta
				w, err = workloadOf(&meta, d.Spec.Replicas, &d.Spec.Template, false)
			}
		case what.Kind == "StatefulSet" && what.APIVersion == "apps/v1":
			var s appsv1.StatefulSet
			if err = yaml.UnmarshalStrict(document, &s); err == nil {
				meta = s.ObjectMeta
				w, err = workloadOf(&meta, s.Spec.Replicas, &s.Spec.Template, true)
			}
		case what.Kind == placement.KindDaemonSet && what.APIVersion == "apps/v1":
			var d appsv1.DaemonSet
			if err = yaml.UnmarshalStrict(document, &d); err == nil {
				meta = d.ObjectMeta
				w, err = workloadOf(&meta, nil, &d.Spec.Template, false)
				w.Daemon = true
			}
		case what.Kind == placement.KindJob && what.APIVersion == "batch/v1":
			var j batchv1.Job
			if err = yaml.UnmarshalStrict(document, &j); err == nil {
				meta = j.ObjectMeta
				w, err = jobOf(&j)
			}
		case what.Kind == placement.KindBudget && what.APIVersion == "policy/v1":
			var b policyv1.PodDisruptionBudget
			if err = yaml.UnmarshalStrict(document, &b); err == nil {
				err = checkBudget(&b)
			}
			all.budgets = append(all.budgets, b)
		default:
			all.others[what.Kind]++
			continue
		}
		if err != nil {
			return fmt.Errorf("document %d, a %s: %w", number, what.Kind, err)
		}
		if w.Replicas > 0 {
			all.workloads, all.spaces = append(all.workloads, w), append(all.spaces, space(&meta))
		}
	}
}

// checkBudget says what of a budget the API would refuse.
func checkBudget(b *policyv1.PodDisruptionBudget) error {
	if b.Spec.MinAvailable != nil && b.Spec.MaxUnavailable != nil {
		return fmt.Errorf("%s has both minAvailable and maxUnavailable", b.Name)
	}
	if _, err := metav1.LabelSelectorAsSelector(b.Spec.Selector); err != nil {
		return fmt.Errorf("%s: %w", b.Name, err)
	}
	for _, bound := range []*intstr.IntOrString{b.Spec.MinAvailable, b.Spec.MaxUnavailable} {
		if n, err := intstr.GetScaledValueFromIntOrPercent(ptr.To(ptr.Deref(bound, intstr.FromInt32(0))), 100, true); err != nil || n < 0 {
			return fmt.Errorf("%s: %s is neither a number of pods nor a share of them like 25%%", b.Name, bound)
		}
	}
	return nil
}

// workloadOf is a workload with what decides about where its pods go, and the defaults that the API would have given it.
func workloadOf(meta *metav1.ObjectMeta, replicas *int32, template *corev1.PodTemplateSpec, stateful bool) (model.Workload, error) {
	name := meta.Name
	if meta.Namespace != "" && meta.Namespace != manifestNamespace {
		name = meta.Namespace + "-" + name
	}
	switch {
	case len(validation.IsDNS1123Label(name)) > 0:
		return model.Workload{}, fmt.Errorf("%q cannot be a name: lower-case letters, digits and dashes, at most 63", name)
	case ptr.Deref(replicas, 1) < 0:
		return model.Workload{}, fmt.Errorf("%s: %d replicas", name, *replicas)
	case len(template.Spec.Containers) == 0:
		return model.Workload{}, fmt.Errorf("%s has no container", name)
	}
	spec := template.Spec.DeepCopy()
	spec.Volumes = nil
	spec.RestartPolicy, spec.SchedulerName = corev1.RestartPolicyAlways, corev1.DefaultSchedulerName
	if spec.TerminationGracePeriodSeconds == nil {
		spec.TerminationGracePeriodSeconds = ptr.To[int64](defaultPodGrace)
	}
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			c := &containers[i]
			c.VolumeMounts, c.VolumeDevices = nil, nil
			for resource, limit := range c.Resources.Limits {
				if _, asked := c.Resources.Requests[resource]; !asked {
					if c.Resources.Requests == nil {
						c.Resources.Requests = corev1.ResourceList{}
					}
					c.Resources.Requests[resource] = limit
				}
			}
			for resource, q := range c.Resources.Requests {
				if q.Sign() < 0 {
					return model.Workload{}, fmt.Errorf("%s: the container %s asks for %s %s", name, c.Name, q.String(), resource)
				}
			}
		}
	}
	for i := range spec.TopologySpreadConstraints {
		if c := &spec.TopologySpreadConstraints[i]; c.WhenUnsatisfiable == "" {
			c.WhenUnsatisfiable = corev1.DoNotSchedule
		}
	}
	return model.Workload{
		Name: name, Stateful: stateful, Replicas: int(ptr.Deref(replicas, 1)), Requests: requestsOf(spec),
		Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels, Annotations: template.Annotations}, Spec: *spec},
	}, nil
}

// requestsOf adds up what a pod's containers ask for, for those who only want to know how much room there is.
func requestsOf(spec *corev1.PodSpec) corev1.ResourceList {
	sum := corev1.ResourceList{}
	for _, c := range spec.Containers {
		for resource, q := range c.Resources.Requests {
			have := sum[resource]
			have.Add(q)
			sum[resource] = have
		}
	}
	return sum
}

// manifestLines are the lines of a text for workloads that came from folders.
func manifestLines(workloads []model.Workload) []string {
	var lines, folders []string
	names := map[string][]string{}
	for _, w := range workloads {
		if w.Folder == "" {
			continue
		}
		if !slices.Contains(folders, w.Folder) {
			folders = append(folders, w.Folder)
		}
		names[w.Folder] = append(names[w.Folder], w.Name)
	}
	for _, folder := range folders {
		lines = append(lines, "workloads "+folder+" only "+strings.Join(names[folder], " "))
	}
	return lines
}
