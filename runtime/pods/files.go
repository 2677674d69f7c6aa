package pods

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Limits of resolv.conf that Kubernetes validates against.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxHostname    = 63
)

// hostname is the pod's host name: the override, spec.hostname, or the pod's name cut to what the kernel allows.
func hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if pod.Spec.HostnameOverride != nil {
		name = *pod.Spec.HostnameOverride
	}
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}

// fqdn is the pod's full name when it has a subdomain, else "".
func fqdn(pod *corev1.Pod, domain string) string {
	if pod.Spec.Subdomain == "" || pod.Spec.HostnameOverride != nil {
		return ""
	}
	return strings.Join([]string{hostname(pod), pod.Spec.Subdomain, pod.Namespace, "svc", domain}, ".")
}

// sandboxHostname is what uname answers in the pod.
func sandboxHostname(pod *corev1.Pod, domain string) string {
	if full := fqdn(pod, domain); full != "" && pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && len(full) <= 64 {
		return full
	}
	return hostname(pod)
}

// hostsFile is the content of the pod's /etc/hosts. node is the node's own file, for pods on its network.
func hostsFile(pod *corev1.Pod, ips []netip.Addr, domain string, node []byte) string {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString("# The node's file, with the pod's hostAliases.\n")
		b.Write(node)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			names := hostname(pod)
			if full := fqdn(pod, domain); full != "" {
				names = full + "\t" + names
			}
			fmt.Fprintf(&b, "%s\t%s\n", ip, names)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.String()
}

// resolver is a resolv.conf.
type resolver struct{ nameservers, searches, options []string }

func parseResolver(text string) resolver {
	var r resolver
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.nameservers = append(r.nameservers, f[1])
		case "search", "domain":
			r.searches = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

func (r resolver) text() string {
	var b strings.Builder
	for _, n := range r.nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(r.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.searches, " "))
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.String()
}

// podResolver applies dnsPolicy and dnsConfig. node is the node's resolv.conf.
// https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
func podResolver(pod *corev1.Pod, dns DNS, node resolver) resolver {
	var r resolver
	switch policy := pod.Spec.DNSPolicy; {
	case policy == corev1.DNSNone:
	case policy == corev1.DNSDefault, pod.Spec.HostNetwork && policy != corev1.DNSClusterFirstWithHostNet:
		r = node
	default:
		r.nameservers = slices.Clone(dns.Nameservers)
		r.searches = append([]string{pod.Namespace + ".svc." + dns.Domain, "svc." + dns.Domain, dns.Domain}, node.searches...)
		r.options = []string{"ndots:5"}
	}
	if extra := pod.Spec.DNSConfig; extra != nil {
		r.nameservers = append(slices.Clone(r.nameservers), extra.Nameservers...)
		r.searches = append(slices.Clone(r.searches), extra.Searches...)
		r.options = mergeOptions(r.options, extra.Options)
	}
	r.nameservers = firstUnique(r.nameservers, maxNameservers)
	r.searches = firstUnique(r.searches, maxSearches)
	return r
}

func mergeOptions(base []string, extra []corev1.PodDNSConfigOption) []string {
	out := slices.Clone(base)
	for _, o := range extra {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		out = slices.DeleteFunc(out, func(s string) bool { name, _, _ := strings.Cut(s, ":"); return name == o.Name })
		out = append(out, text)
	}
	return out
}

func firstUnique(list []string, most int) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) && len(out) < most {
			out = append(out, s)
		}
	}
	return out
}

// etcFiles are the names of the pod's own files in /etc, by the name in its folder.
var etcFiles = []string{"hosts", "resolv.conf", "hostname"}

// writeEtc writes the pod's hosts, resolv.conf and hostname files into dir. They are written in place, since containers have them mounted.
func writeEtc(dir string, pod *corev1.Pod, ips []netip.Addr, dns DNS) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("pod files: %w", err)
	}
	nodeResolver, err := os.ReadFile(dns.HostFile)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("pod files: %w", err)
	}
	var nodeHosts []byte
	if pod.Spec.HostNetwork {
		if nodeHosts, err = os.ReadFile("/etc/hosts"); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("pod files: %w", err)
		}
	}
	content := map[string]string{
		"hosts":       hostsFile(pod, ips, dns.Domain, nodeHosts),
		"resolv.conf": podResolver(pod, dns, parseResolver(string(nodeResolver))).text(),
		"hostname":    hostname(pod) + "\n",
	}
	for _, name := range etcFiles {
		path := filepath.Join(dir, name)
		if have, err := os.ReadFile(path); err == nil && string(have) == content[name] {
			continue
		}
		if err := os.WriteFile(path, []byte(content[name]), 0o644); err != nil {
			return fmt.Errorf("pod files: %w", err)
		}
	}
	return nil
}
