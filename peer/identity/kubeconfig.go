package identity

import (
	"fmt"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Endpoint is where one peer serves the API.
type Endpoint struct {
	Name    string // the peer's name; the context's name in the kubeconfig
	Address string // host:port
}

// adminUser is the one user of our kubeconfigs.
const adminUser = "kubernetes-admin"

// Kubeconfig is an administrator's kubeconfig with one cluster and one context
// per peer, all with the same CA, by which our own client knows that they are
// alternatives. The first endpoint is the current context. The client
// certificate in it is new and valid for AdminCertificateLife.
func (c *Cluster) Kubeconfig(now time.Time, endpoints []Endpoint) ([]byte, error) {
	certificate, key, err := c.Admin(now)
	if err != nil {
		return nil, err
	}
	config := clientcmdapi.NewConfig()
	config.AuthInfos[adminUser] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	for i, endpoint := range endpoints {
		config.Clusters[endpoint.Name] = &clientcmdapi.Cluster{
			Server: "https://" + endpoint.Address, CertificateAuthorityData: c.CAPEM(),
		}
		config.Contexts[endpoint.Name] = &clientcmdapi.Context{Cluster: endpoint.Name, AuthInfo: adminUser}
		if i == 0 {
			config.CurrentContext = endpoint.Name
		}
	}
	text, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("write the kubeconfig: %w", err)
	}
	return text, nil
}
