const $=id=>document.getElementById(id),P=[];let state={},last=0,ready=false;
const css=n=>getComputedStyle(document.body).getPropertyValue(n);
function draw(){const c=$('c'),d=devicePixelRatio||1,w=c.clientWidth,h=c.clientHeight;c.width=w*d;c.height=h*d;
 const g=c.getContext('2d');g.scale(d,d);g.font='12px system-ui';g.fillStyle=css('--quiet');g.strokeStyle=css('--rule');
 const now=P.length?P[P.length-1].t:Date.now(),span=Math.max(120e3,Math.min(1200e3,now-(P.length?P[0].t:now))),x=t=>36+(w-44)*(1-(now-t)/span),y=v=>h-20-(h-28)*(v/260);
 for(let v=0;v<=250;v+=50){g.beginPath();g.moveTo(36,y(v));g.lineTo(w,y(v));g.stroke();g.fillText(v,4,y(v)+4)}
 for(const[k,col]of[['et','--et'],['bt','--bt']]){g.strokeStyle=css(col);g.lineWidth=2;g.beginPath();let up=true,t0=0;
  for(const p of P){if(p.mark&&p.bt==null)continue;if(p[k]==null||p.t-t0>15e3&&t0){up=true}if(p[k]!=null&&x(p.t)>=36){up?g.moveTo(x(p.t),y(p[k])):g.lineTo(x(p.t),y(p[k]));up=false}t0=p.t}g.stroke()}
 g.fillStyle=css('--ink');g.strokeStyle=css('--quiet');g.lineWidth=1;
 for(const p of P)if(p.mark&&x(p.t)>=36){g.beginPath();g.moveTo(x(p.t),8);g.lineTo(x(p.t),h-20);g.stroke();g.fillText(p.mark,x(p.t)+4,16)}}
function show(){const p=P[P.length-1],old=!p||Date.now()-last>15e3,f=v=>v==null||old?'—':v.toFixed(1);
 for(const k of['bt','et','ror'])$(k).lastElementChild.textContent=f(p&&p[k]);
 const s=$('say'),bad=state.journalError||state.driverError||state.nameConflict;s.className=bad||old&&ready?'bad':'';
 s.textContent=!ready?'':state.journalError?'Disk: '+state.journalError:state.driverError?'Machine: '+state.driverError:state.nameConflict?'Cloud: '+state.nameConflict:state.keyError?'Samples are stored here and wait for the signing key: '+state.keyError:state.identityError?'Samples are stored here. Certificate: '+state.identityError:state.uplinkError&&state.uplinkConnected?'Cloud: '+state.uplinkError:old?'No sample for '+(last?Math.round((Date.now()-last)/1e3)+' s':'a while'):
  (state.session?'Roasting since '+new Date(state.sessionStartedMs).toLocaleTimeString():state.begunBeforeMs?'Warming up, or a roast begun before the agent started, at about '+new Date(state.begunBeforeMs).toLocaleTimeString():'Between roasts')+' · '+(state.uplinkConnected?'cloud connected':'offline, all samples are stored here')+' · '+((state.journal||{}).unsentSamples||0)+' samples to send'+(state.noted&&Date.now()-state.noted.t<60e3?' · '+state.noted.text:'');
 draw()}
const C=s=>(s<0?'0':Math.floor(s/60))+':'+String(Math.max(0,s)%60).padStart(2,'0'),N={DRY_END:'Dry end',FC:'First crack',DROP:'Drop'};
function ahead(){const a=state.ahead,p=P[P.length-1],old=!p||Date.now()-last>15e3;
 $('ahead').textContent=!a||old?'':'In a minute '+a.btC.toFixed(1)+' ± '+a.btHalfC.toFixed(1)+' °C'+a.expected.map(e=>' · '+N[e.type]+' in '+C(e.inS)+' ('+C(e.fromS)+'–'+C(e.toS)+')').join('')}
function add(p){if(p.mark&&p.bt==null&&P.length){P.splice(P.length-1,0,p);return}P.push(p);if(P.length>12000)P.shift();last=Date.now()}
async function start(){let from;try{const r=await fetch('points');from=r.headers.get('x-live-cursor');for(const p of await r.json())add(p)}catch{}ready=true;
 const e=new EventSource(from?'live?from='+from:'live');e.onmessage=m=>add(JSON.parse(m.data))}
async function poll(){try{state=await(await fetch('status')).json();$('name').textContent=document.title=state.machine}catch{state={journalError:'the agent does not answer'}}show();ahead()}
setInterval(poll,1000);setInterval(show,250);start();poll();
for(const b of document.querySelectorAll('button'))b.onclick=async()=>{const r=await fetch('marks',{method:'POST',headers:{'content-type':'application/json'},body:JSON.stringify({type:b.dataset.k})});if(!r.ok)alert((await r.json()).error)};
