package api

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/spf13/pflag"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
)

// newOptions fills in kube-apiserver's options. client reads service accounts, pods and secrets for tokens.
func newOptions(ctx context.Context, config *Config, client kubernetes.Interface) (options.CompletedOptions, error) {
	var none options.CompletedOptions
	o := options.NewOptions()
	o.GenericServerRunOptions.AdvertiseAddress = config.AdvertiseAddress.Addr().AsSlice()
	o.GenericServerRunOptions.ExternalHost = config.AdvertiseAddress.String()
	o.SecureServing.BindPort = 0 // the peer's one port serves the handler
	o.Etcd.EnableWatchCache = false
	o.Etcd.StorageConfig.CountMetricPollPeriod = 0 // counting every resource each minute is work a quiet peer need not do
	o.Features.EnablePriorityAndFairness = false
	o.Features.EnableProfiling = false
	o.Metrics = nil

	if err := authentication(o, config, client); err != nil {
		return none, err
	}
	if err := admissionPlugins(o.Admission); err != nil {
		return none, err
	}
	o.Authorization.Modes = []string{"Node", "RBAC"}

	completed, err := o.Complete(ctx, nil, nil)
	if err != nil {
		return none, fmt.Errorf("options: %w", err)
	}
	return completed, nil
}

func authentication(o *options.Options, config *Config, client kubernetes.Interface) error {
	ca, err := dynamiccertificates.NewStaticCAContent("cluster", config.ClientCA)
	if err != nil {
		return fmt.Errorf("CA of client certificates: %w", err)
	}
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{config.ServiceAccountKey.Public()})
	if err != nil {
		return fmt.Errorf("service-account key: %w", err)
	}
	signer, err := serviceaccount.JWTTokenGenerator(Issuer, config.ServiceAccountKey)
	if err != nil {
		return fmt.Errorf("service-account key: %w", err)
	}
	o.ServiceAccountIssuer = signer

	a := kubeoptions.NewBuiltInAuthenticationOptions().WithAnonymous().WithBootstrapToken().WithClientCert().WithRequestHeader().WithServiceAccounts()
	a.ClientCert.CAContentProvider = ca
	a.ServiceAccounts.Issuers = []string{Issuer}
	a.ServiceAccounts.ExternalPublicKeysGetter = keys
	a.ServiceAccounts.OptionalTokenGetter = func(informers.SharedInformerFactory) serviceaccount.ServiceAccountTokenGetter {
		return liveTokens{client}
	}
	o.Authentication = a
	return nil
}

func admissionPlugins(o *kubeoptions.AdmissionOptions) error {
	o.GenericAdmission.EnablePlugins = []string{noderestriction.PluginName}
	// the plugin's only settings are flags
	flags := pflag.NewFlagSet("admission", pflag.ContinueOnError)
	defaulttolerationseconds.RegisterFlags(flags)
	for _, name := range []string{"default-not-ready-toleration-seconds", "default-unreachable-toleration-seconds"} {
		if err := flags.Set(name, strconv.Itoa(DefaultTolerationSeconds)); err != nil {
			return fmt.Errorf("default tolerations: %w", err)
		}
	}
	return nil
}

// nodePorts is Kubernetes' default range.
func nodePorts() utilnet.PortRange { return kubeoptions.DefaultServiceNodePortRange }

// addressOnly is a listener that nothing ever connects to. Upstream asks it for the address to advertise, and ends its
// run when the listener has ended.
type addressOnly struct {
	address net.Addr
	closed  chan struct{}
	once    sync.Once
}

func newAddressOnly(address netip.AddrPort) *addressOnly {
	return &addressOnly{address: net.TCPAddrFromAddrPort(address), closed: make(chan struct{})}
}

// Accept waits for Close.
func (l *addressOnly) Accept() (net.Conn, error) {
	<-l.closed
	return nil, net.ErrClosed
}

// Close ends Accept.
func (l *addressOnly) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is the address to advertise.
func (l *addressOnly) Addr() net.Addr { return l.address }
